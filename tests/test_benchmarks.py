"""The benchmarks' arithmetic, and one small trial of Umbel and of Celery on a real Valkey."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import celery
import pytest
from redis import Redis
from support.workers import FAST

from benchmarks import aims, backlog, events, profile, report, trial
from benchmarks.effects import Effects
from benchmarks.figures import Spread, middle_rate, percentile
from benchmarks.results import Results
from benchmarks.servers import Valkey
from benchmarks.systems import AT_MOST_ONCE, NAMES, VALKEY, Pool
from benchmarks.trial import Counts, empty_bench
from benchmarks.turns import backlogs, trials
from benchmarks.work import RECORD, message


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    """A Valkey as the benchmarks start it."""
    valkey = Valkey(tmp_path_factory.mktemp("valkey"))
    yield valkey
    valkey.stop()


def test_the_rate_is_that_of_the_middle() -> None:
    """Ten jobs a second, with a slow start and a late end that do not count."""
    steady = [second * 10**8 for second in range(80)]
    slow = [-(10**9) * number for number in range(1, 11)]
    late = [10**10 + 10**9 * number for number in range(10)]
    assert middle_rate([*late, *steady, *slow]) == pytest.approx(10)


def test_too_few_events_have_no_rate() -> None:
    """A rate needs two moments; nothing is made up."""
    assert math.isnan(middle_rate([]))
    assert math.isnan(middle_rate([5]))
    assert math.isnan(middle_rate([5, 5]))


@pytest.mark.parametrize(("percent", "value"), [(50, 50), (99, 99), (100, 100), (0, 1)])
def test_a_percentile_is_a_measured_value(percent: float, value: float) -> None:
    """Nearest rank: of one to a hundred, the 99th percentile is 99."""
    assert percentile(range(100, 0, -1), percent) == value


def test_a_spread_leaves_out_what_was_not_measured() -> None:
    """The median of the rounds that there are, with the least and the most."""
    assert Spread.of([3, None, 1, math.nan, 10]) == Spread(median=3, low=1, high=10)
    assert Spread.of([None, math.nan]) is None


def test_effects_are_counted_by_message(tmp_path: Path) -> None:
    """A second run is no second job, and half a record is none."""
    (tmp_path / "1").write_bytes(RECORD.pack(7, 100) + RECORD.pack(8, 50) + b"half")
    (tmp_path / "2").write_bytes(RECORD.pack(7, 60))
    effects = Effects.read(tmp_path)
    assert effects.first == {7: 60, 8: 50}
    assert effects.times == [50, 60, 100]
    assert effects.again == 1


def test_a_part_of_the_work_is_enough_for_a_rate() -> None:
    """Small shares are rounded up to a hundred messages; what was nothing stays nothing."""
    assert Counts(each=0, many=5_000).times(0.001) == Counts(each=0, many=100)


def test_a_copy_has_ids_of_its_own() -> None:
    """The end of every id is made new, with and without dashes; the rest stays as it was."""
    dashed, plain = b"0f8fad5b-d9cd-469f-a165-70867728950e", b"0f8fad5bd9cd469fa16570867728950e"
    pieces = backlog._without_ids(b"<" + dashed + b"|" + plain + b">")
    assert pieces == [b"<" + dashed[:-8], b"|" + plain[:-8], b">"]


def test_what_a_message_added_is_told_from_what_a_process_added() -> None:
    """A queue grows with each message, a producer's heartbeat does not."""
    ids = [b"%032x" % number for number in range(20)]
    queued = {(b"LPUSH", b"queue", b"id " + message_id) for message_id in ids}
    before = {(b"SET", b"settings", b"x")}
    heartbeat = {(b"ZADD", b"heartbeats", b"1", b"f" * 32)}
    assert set(backlog._added(before, before | queued | heartbeat)) == queued


def described(title: str, *pools: Pool) -> dict:
    """A system as `describe` answers it."""
    because = {"safety": AT_MOST_ONCE, "because": "", "source": "", "versions": {"x": "1"}}
    return {"title": title, "brokers": [VALKEY], "pools": [vars(pool) for pool in pools], **because}


@pytest.fixture
def results() -> Results:
    """Umbel and Celery with one pool each, nothing measured yet."""
    pool = Pool(aims.PREFORK, "celery")
    systems = {"umbel": described("Umbel", pool), "celery": described("Celery", pool)}
    options = {"quick": False, "brokers": [VALKEY]}
    return Results.begin(systems, ["Valkey 9"], options)


def test_an_aim_is_met_or_not_by_the_medians(results: Results) -> None:
    """Three times plain Celery is met at exactly that; one round out of three does not matter."""
    for number, (ours, theirs) in enumerate([(3_000, 1_000), (9_000, 900), (2_000, 1_100)]):
        for system, drain in (("umbel", ours), ("celery", theirs)):
            where = {"broker": VALKEY, "system": system, "pool": aims.PREFORK, "waiting": None}
            results.add({"drain": drain, "send": 100.0}, round=number, **where)
    rows = {(work, aim): (measured, met) for work, aim, measured, met in aims.rows(results)}
    assert rows["drain, prefork", "3 × plain Celery"] == ("3.00 × (3,000/s)", "met")
    assert rows["`send`", "3 × plain Celery"] == ("1.00 × (100/s)", "**not met**")
    assert not any(aim == "level with huey" for _, aim in rows)


def test_rounds_are_interleaved(results: Results) -> None:
    """Every system once in each round, and each round begins with another."""
    rounds = list(trials(results, [VALKEY], 2))
    assert [[turn.system for turn in turns] for turns in rounds] == [
        ["umbel", "celery"],
        ["celery", "umbel"],
    ]
    first, later = backlogs(results, [VALKEY], 2, [10, 100, 1_000], quick=False)
    assert len(first) == 6
    assert {turn.waiting for turn in later} == {10, 1_000}


@pytest.mark.parametrize("system", ["umbel", "celery"])
def test_a_trial_measures_a_real_worker(system: str, server: Valkey) -> None:
    """Fifty messages sent both ways are done once each, and round trips come back."""
    command = f"celery -A benchmarks.systems.{system} worker -P solo {' '.join(FAST)}"
    pool = Pool("one", command, idle=True)
    sample = trial.run(system, pool, server, server, Counts(each=15, many=15, trips=5))
    assert sample["lost"] == sample["again"] == 0
    assert sample["messages"] >= 50
    assert {"send", "send_many", "drain", "pss_mib", "message_bytes", "p99_ms"} <= sample.keys()
    assert all(value >= 0 for value in sample.values())


def test_an_event_is_handled_by_each_subscriber(
    server: Valkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever was declared before gets it; what was handled by all has a time."""
    monkeypatch.setattr(events, "HANDLINGS", 60)
    sample = events.run(server, server, 3)
    assert sample.keys() == {"publish_us", "handle_us"}
    assert min(sample.values()) > 0


def test_a_backlog_is_made_of_messages_like_those_sent(server: Valkey) -> None:
    """Twice twenty are sent, twenty are copied twice: eighty wait, no two alike."""
    with empty_bench("umbel", server, server) as bench:
        bench.produce("send")
        before = backlog._contents(server.client)
        bench.produce("send")
        added = backlog._added(before, backlog._contents(server.client))
        backlog._copy(server.client, added, copies=2)
        queues = [key for key in server.client.scan_iter() if server.client.type(key) == b"list"]
        waiting = [element for queue in queues for element in elements(server.client, queue)]
    assert len(waiting) == len(set(waiting)) == 80


def test_describing_a_system_says_what_is_installed(server: Valkey) -> None:
    """The versions are those of the interpreter that runs it."""
    with empty_bench("celery", server, server) as bench:
        described = bench.produce("describe")
    assert described["versions"]["celery"] == celery.__version__
    assert described["pools"][0]["name"] == aims.PREFORK


def elements(client: Redis, queue: bytes) -> list[bytes]:
    """All that wait."""
    return client.lrange(queue, 0, -1)


def test_the_tables_are_made_from_what_was_saved(results: Results, tmp_path: Path) -> None:
    """`results.json` is all that a report needs."""
    where = {"broker": VALKEY, "system": "umbel", "pool": aims.PREFORK, "waiting": None}
    results.add({"drain": 1_234.0, "lost": 0, "again": 0}, round=0, **where)
    results.save(tmp_path)
    report.write(Results.load(tmp_path), tmp_path)
    assert "| Umbel | prefork -c 2 | 1,234 |" in (tmp_path / "results.md").read_text()


def test_a_sample_belongs_to_the_innermost_code_that_has_an_owner() -> None:
    """The standard library's is its caller's."""
    packages = "/a/lib/python3.11/site-packages"
    stack = [
        f"run ({packages}/celery/worker/worker.py:1)",
        f"on_task ({packages}/celery/events/dispatcher.py:9)",
        "dumps (/usr/lib/python3.11/json/__init__.py:5)",
    ]
    lines = [";".join(stack[:depth]) + f" {depth}" for depth in (1, 2, 3)]
    lines.append(f"flush ({profile.ROOT}/routing/valkey/channel.py:7) 4")
    assert list(profile._owners("\n".join([*lines, "main (x.py:1) 5"]))) == [
        ("Celery: requests and the rest", 1),
        ("Celery: events", 2),
        ("Celery: events", 3),
        ("Umbel: transport", 4),
        ("Python itself", 5),
    ]


def test_every_system_has_its_file() -> None:
    """The names in the tables' order are those of the files, beside that of the events."""
    files = {path.stem for path in Path(trial.__file__).parent.glob("systems/[a-z]*.py")}
    assert files == {*NAMES, events.SYSTEM}


def test_all_send_the_same_small_message() -> None:
    """A string, an integer and a short list."""
    assert [type(value) for value in message(7).values()] == [str, int, list]

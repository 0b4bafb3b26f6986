"""The way back: fail, repair, replay, done."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from support.process import eventually
from support.servers import RabbitMQ, Server

from umbel.cli.deadletters import deadletters
from umbel.config.errors import JobFailed, UnknownQueue
from umbel.config.settings import Settings
from umbel.consumers import replay
from umbel.consumers.deadletters import Reason
from umbel.jobs.records import JobState

APP = """
from pathlib import Path
from umbel import JobContext, Message, Retry, Umbel

app = Umbel("shop", publish_timeout_s=2)
REPAIRED = Path(__file__).parent / "repaired"
RUNS = Path(__file__).parent / "runs"

class Fragile(Message, name="shop.fragile", version=1):
    text: str

@app.job(queue="fragile", retry=Retry(immediate=1))
def fragile(message: Fragile, context: JobContext) -> list[str]:
    with RUNS.open("a") as runs:
        runs.write(f"{message.text} {context.attempt}\\n")
    if not REPAIRED.exists():
        raise ValueError(message.text)
    return [message.text, context.correlation_id]
"""
on_both = pytest.mark.brokers("valkey", "rabbitmq")


@pytest.fixture
def shop(write_app) -> ModuleType:
    """An app whose job fails until it is repaired."""
    return write_app(APP)


@pytest.fixture
def bury(shop, start_worker) -> Callable[..., Any]:
    """Factory `bury("a", "b") -> handles`: their jobs failed for good; no worker runs after."""

    def bury(*texts: str, **options: Any) -> list[Any]:
        worker = start_worker(shop)
        handles = []
        for text in texts:
            handles.append(shop.fragile.request(shop.Fragile(text=text), **options))
            with pytest.raises(JobFailed):
                handles[-1].result(10)
        worker.stop()
        return handles

    return bury


def celery(shop: ModuleType, *arguments: str, typed: str = "") -> tuple[int, str]:
    """The command `deadletters …`: exit status and what it prints."""
    done = subprocess.run(
        [sys.executable, "-m", "celery", "-A", shop.__name__, "deadletters", *arguments],
        capture_output=True,
        text=True,
        input=typed,
        env=os.environ | {"COLUMNS": "200"},
    )
    return done.returncode, done.stdout + done.stderr


def runs(shop: ModuleType) -> list[str]:
    """What ran: its text and attempt."""
    return shop.RUNS.read_text().splitlines() if shop.RUNS.exists() else []


@on_both
def test_fail_repair_replay_done(shop, bury, start_worker, broker):
    """The message as it was, its runs counted anew; who has the handle gets the result."""
    [handle] = bury("a", correlation_id="order-7")
    [letter] = shop.app.dead_letters.newest(9)
    assert (letter.attempts, letter.queue) == (2, "fragile")
    shop.REPAIRED.touch()
    status, printed = celery(shop, "replay", handle.id)
    assert (status, printed) == (
        0,
        f"sent   shop.fragile {letter.id} -> fragile\n1 sent, 0 stay\n",
    )
    assert shop.app.dead_letters.count() == 0
    record = handle.record()
    assert (record.state, record.error, record.attempt) == (JobState.QUEUED, None, 0)
    [waiting] = broker.waiting("fragile")
    gone = {"umbel-deliveries", "umbel-returns", "eta", "retries"}
    assert waiting.body == letter.body
    assert (
        waiting.headers.items()
        >= {name: value for name, value in letter.headers.items() if name not in gone}.items()
    )
    assert (waiting.headers["id"], waiting.headers["retries"]) == (handle.id, 0)
    start_worker(shop)
    assert handle.result(10) == ["a", "order-7"]
    assert runs(shop) == ["a 1", "a 2", "a 1"]
    assert shop.app.dead_letters.count() == 0


@on_both
def test_a_dry_run_changes_nothing(shop, bury, broker, valkey):
    """It says what would happen; letters, records and queue stay as they are."""
    [handle] = bury("a")
    store = valkey.client()

    def all_there_is() -> Any:
        return store.hgetall("shop:deadletters"), store.hgetall(f"shop:job:{handle.id}")

    before = all_there_is()
    status, printed = celery(shop, "replay", "--all", "--dry-run")
    assert status == 0
    assert "would go  shop.fragile" in printed
    assert printed.endswith("1 would go, 0 stay; nothing was sent (--dry-run)\n")
    assert all_there_is() == before
    assert broker.waiting("fragile") == []


def test_what_does_not_fit_todays_contract_stays(shop, bury, write_app, broker):
    """With the field and the problem, and exit status 1; what fits goes."""
    bury("7", "x")
    stricter = write_app(APP.replace("text: str", "text: int"))
    status, printed = celery(stricter, "replay", "--job", "shop.fragile")
    assert status == 1
    [stays] = [line for line in printed.splitlines() if line.startswith("stays")]
    assert "shop.fragile: text: Input should be a valid integer" in stays
    assert printed.endswith("1 sent, 1 stay\n")
    assert [b'"7"' in one.body for one in broker.waiting("fragile")] == [True]
    assert [b'"x"' in one.body for one in shop.app.dead_letters.newest(9)] == [True]


def test_what_is_newer_than_this_code_stays(shop, bury, valkey):
    """A worker would not run it either."""
    bury("a")
    [letter] = shop.app.dead_letters.newest(9)
    letter.headers["umbel-version"] = 2
    shop.app.dead_letters.add(letter)
    [result] = shop.app.dead_letters.replay()
    assert result.problem == "it is of version 2, this code knows 1 of shop.fragile"


def test_what_has_expired_stays(shop, bury):
    """Its sender did not want it to run after that; a worker would drop it."""
    bury("a", expires_s=3600)
    [letter] = shop.app.dead_letters.newest(9)
    past = datetime.now(UTC) - timedelta(seconds=1)
    assert datetime.fromisoformat(letter.headers["expires"]) > past
    letter.headers["expires"] = past.isoformat()
    shop.app.dead_letters.add(letter)
    [result] = shop.app.dead_letters.replay()
    assert result.problem.startswith("it expired at ")
    assert shop.app.dead_letters.count() == 1


@on_both
def test_what_fails_again_is_kept_again(shop, bury, start_worker):
    """Also if it does so before its first letter was removed: one letter, with the new end."""
    [handle] = bury("a")
    [first] = shop.app.dead_letters.newest(9)
    start_worker(shop)
    assert [one.problem for one in shop.app.dead_letters.replay(handle.id)] == [""]
    with pytest.raises(JobFailed, match="ValueError: a"):
        handle.result(10)
    [second] = shop.app.dead_letters.newest(9)
    assert (second.id, second.attempts) == (first.id, 2)
    assert second.died_at > first.died_at


def test_a_letter_that_is_buried_while_it_is_removed_stays(shop, bury, start_worker, monkeypatch):
    """The worker was faster than the replay: nothing is lost."""
    [handle] = bury("a")
    start_worker(shop)
    office = shop.app.dead_letters
    remove = office._remove

    def late(letters: Any) -> int:
        with pytest.raises(JobFailed):
            handle.result(10)
        return remove(letters)

    monkeypatch.setattr(office, "_remove", late)
    office.replay()
    assert office.count() == 1


def push(broker: Server, body: bytes) -> None:
    """Put what is no message of ours into the queue."""
    if isinstance(broker, RabbitMQ):
        headers = {"x-colour": "red"}
        broker.push("fragile", body, content_type="text/odd", headers=headers, priority=3)
    else:
        broker.client().lpush("fragile", body)


@on_both
def test_what_cannot_be_decoded_goes_back_raw(shop, start_worker, broker):
    """Only when that is asked for, and then byte by byte as it came."""
    worker = start_worker(shop)
    push(broker, b"\xffgarbage")
    eventually(lambda: shop.app.dead_letters.count() == 1)
    worker.stop()
    status, printed = celery(shop, "replay", "--kind", "quarantine")
    assert status == 1
    assert "no task header; --raw sends its bytes as they came" in printed
    assert shop.app.dead_letters.count() == 1
    [result] = shop.app.dead_letters.replay(raw=True, reason=Reason.MALFORMED)
    assert result.problem == ""
    assert shop.app.dead_letters.count() == 0
    if isinstance(broker, RabbitMQ):
        [waiting] = broker.waiting("fragile")
        assert waiting.body == b"\xffgarbage"
        assert waiting.headers == {"x-colour": "red", "x-delivery-count": 0}  # the server's own
    else:
        assert broker.client().lrange("fragile", 0, -1) == [b"\xffgarbage"]


@on_both
def test_a_job_that_no_worker_knew_is_replayed_where_one_does(
    shop, write_app, start_worker, broker
):
    """Its message was in quarantine; the record says failed, then queued, then succeeded."""
    unaware = write_app(APP.replace('name="shop.fragile"', 'name="shop.other"'))
    worker = start_worker(unaware)
    shop.REPAIRED.touch()
    handle = shop.fragile.request(shop.Fragile(text="a"))
    with pytest.raises(JobFailed, match="no job 'shop.fragile' in this worker"):
        handle.result(10)
    worker.stop()
    [result] = unaware.app.dead_letters.replay()
    assert "no job 'shop.fragile' in this worker; it has: " in result.problem
    [result] = shop.app.dead_letters.replay(kind="quarantine")
    assert result.problem == ""
    start_worker(shop)
    assert handle.result(10) == ["a", handle.id]


def test_a_compressed_message_is_replayed(shop, start_worker, write_app):
    """Kombu has unpacked what is kept: it goes without the header that says otherwise."""
    unaware = write_app(APP.replace('name="shop.fragile"', 'name="shop.other"'))
    worker = start_worker(unaware)
    shop.REPAIRED.touch()
    sent = shop.fragile.apply_async(({"text": "a"},), compression="gzip")
    eventually(lambda: shop.app.dead_letters.count() == 1)
    worker.stop()
    [result] = shop.app.dead_letters.replay()
    assert result.problem == ""
    start_worker(shop)
    assert shop.app.handle(sent.id).result(10) == ["a", sent.id]


CHAIN = """
class Next(Message, name="shop.next", version=1):
    text: str

@app.job(queue="fragile")
def next_step(message: Next) -> str:
    return message.text

class First(Message, name="shop.first", version=1):
    text: str

@app.job(queue="fragile")
def first_step(message: First) -> dict[str, str]:
    return {"note": message.text}
"""


def test_a_follow_up_that_did_not_fit_is_replayed_once_it_does(write_app, start_worker):
    """A chain's next step: quarantined by the worker, repaired in the contract."""
    shop = write_app(APP + CHAIN)
    worker = start_worker(shop)
    chained = (shop.first_step.s({"text": "a"}) | shop.next_step.s()).apply_async()
    eventually(lambda: shop.app.dead_letters.count() == 1)
    with pytest.raises(JobFailed, match="text: Field required"):
        shop.app.handle(chained.id).result(10)
    worker.stop()
    repaired = write_app(APP + CHAIN.replace("    text: str\n", '    text: str = "b"\n', 1))
    assert [one.problem for one in repaired.app.dead_letters.replay()] == [""]
    start_worker(repaired)
    assert repaired.app.handle(chained.id).result(10) == "b"


KILLED = """
import os, signal, sys
from importlib import import_module

office = import_module(sys.argv[1]).app.dead_letters
setattr(office, sys.argv[2], lambda *args: os.kill(os.getpid(), signal.SIGKILL))
office.replay()
"""


def replay_killed_at(shop: ModuleType, step: str) -> None:
    """A replay in a process of its own that dies when it comes to a step."""
    done = subprocess.run([sys.executable, "-c", KILLED, shop.__name__, step])
    assert done.returncode == -9


@on_both
@pytest.mark.parametrize("step", ["_send", "_remove"])
def test_a_replay_that_is_killed_loses_nothing(shop, bury, start_worker, step):
    """Before its message was sent the next replay sends it, after that it is a harmless copy."""
    [handle] = bury("a")
    shop.REPAIRED.touch()
    replay_killed_at(shop, step)
    assert shop.app.dead_letters.count() == 1
    assert handle.state() is JobState.QUEUED
    assert [one.problem for one in shop.app.dead_letters.replay()] == [""]
    start_worker(shop)
    assert handle.result(10)[0] == "a"
    marker = shop.fragile.request(shop.Fragile(text="after"))
    assert marker.result(10)[0] == "after"  # the queue has been worked off
    assert runs(shop) == ["a 1", "a 2", "a 1", "after 1"]
    assert shop.app.dead_letters.count() == 0


def test_a_job_that_has_not_failed_is_not_run_again(shop, bury, start_worker):
    """A replay that was killed after its message was sent; its job has succeeded by now."""
    [handle] = bury("a")
    shop.REPAIRED.touch()
    replay_killed_at(shop, "_remove")
    start_worker(shop)
    handle.result(10)
    [result] = shop.app.dead_letters.replay(dry_run=True)
    assert result.problem == "its job has succeeded meanwhile: discard it"
    assert [one.problem for one in shop.app.dead_letters.replay()] == [result.problem]
    assert runs(shop) == ["a 1", "a 2", "a 1"]


def test_a_record_that_is_about_to_fail_is_waited_for(shop, bury):
    """The letter is written first, the record after: a replay in between would be undone."""
    [handle] = bury("a")
    shop.app.store.client.hset(f"shop:job:{handle.id}", "state", "running")
    [result] = shop.app.dead_letters.replay()
    assert result.problem == "its job is running again: wait for its end"
    assert shop.app.dead_letters.count() == 1


def test_a_record_that_has_expired_is_made_anew(shop, bury, start_worker):
    """A day later: the handle finds it all the same."""
    [handle] = bury("a")
    shop.app.store.client.delete(f"shop:job:{handle.id}")
    shop.REPAIRED.touch()
    shop.app.dead_letters.replay()
    assert shop.app.handle(handle.id).state() is JobState.QUEUED
    start_worker(shop)
    assert handle.result(10)[0] == "a"


def test_the_rate_is_kept(shop, bury, broker, monkeypatch):
    """A pause before each message but the first; what stays costs none. Time is the test's."""
    bury("a", "b", "c", "d")
    second = next(shop.app.dead_letters.find(oldest_first=True, limit=1))
    second.headers["umbel-version"] = 2
    shop.app.dead_letters.add(second)  # the last now
    now, pauses = [100.0], []

    def sleep(seconds: float) -> None:
        pauses.append((seconds, len(broker.waiting("fragile"))))
        now[0] += seconds

    monkeypatch.setattr(replay, "monotonic", lambda: now[0])
    monkeypatch.setattr(replay, "sleep", sleep)
    results = shop.app.dead_letters.replay(rate=4)
    assert [bool(one.problem) for one in results] == [False, False, False, True]
    assert pauses == [(0.25, 1), (0.25, 2)]


def test_a_rate_is_typed_as_for_celery(shop, bury):
    """And anything else is refused with what is expected."""
    bury("a")
    assert celery(shop, "replay", "--all", "--rate", "100/m")[0] == 0
    for rate in ("fast", "0/s", "5/day"):
        status, printed = celery(shop, "replay", "--all", "--rate", rate)
        assert status == 2
        assert f"'{rate}' is no rate; expected 50/s, 100/m or 20/h" in printed


@on_both
def test_to_another_queue(shop, bury, write_app, broker):
    """One of this app; another is refused before anything is sent."""
    bury("a")
    with pytest.raises(UnknownQueue, match="no queue 'nope' in this app; there are: fragile, shop"):
        shop.app.dead_letters.replay(to="nope")
    [result] = shop.app.dead_letters.replay(to="shop")
    assert (result.queue, result.problem) == ("shop", "")
    assert len(broker.waiting("shop")) == 1


@on_both
def test_a_broker_that_is_away_is_an_error(shop, bury, broker, monkeypatch):
    """Nothing is removed; the next replay finds all."""
    bury("a", "b")
    status, printed = 0, ""
    with monkeypatch.context() as away:
        away.setenv("UMBEL_STORE_URL", os.environ.get("UMBEL_STORE_URL") or broker.url)
        away.setenv("UMBEL_BROKER_URL", broker.url.replace(f":{broker.port}", ":1"))
        status, printed = celery(shop, "replay", "--all")
    assert status == 1
    assert "0 sent, 0 stay" in printed
    assert "was not taken by" in printed
    assert shop.app.dead_letters.count() == 2
    assert [one.problem for one in shop.app.dead_letters.replay()] == ["", ""]


def test_discard_asks(shop, bury):
    """Before it drops more than one, unless it is told not to; no answer is no."""
    bury("a", "b", "c")
    dead = shop.app.dead_letters
    oldest = next(dead.find(oldest_first=True))
    assert celery(shop, "discard", oldest.id) == (0, "1 dropped\n")
    for typed in ("n\n", ""):
        status, printed = celery(shop, "discard", "--all", typed=typed)
        assert status == 1
        assert "Drop 2 messages for good? [y/N]" in printed
    assert dead.count() == 2
    assert celery(shop, "discard", "--job", "nope", "--yes") == (0, "no dead letters\n")
    assert celery(shop, "discard", "--since", "1h", "--limit", "1", "--yes") == (0, "1 dropped\n")
    assert celery(shop, "discard", "--all", typed="y\n")[0] == 0
    assert dead.count() == 0


def test_all_has_to_be_said(shop, bury):
    """Neither replay nor discard takes nothing for everything."""
    for command in ("replay", "discard"):
        status, printed = celery(shop, command)
        assert status == 2
        assert "Give ids, or filters such as --job, or else --all." in printed


def test_times_are_typed_as_people_do(shop, bury):
    """How long ago, or ISO 8601; the rest is refused with examples."""
    bury("a")
    for since, found in (("1h", 1), ("2w", 1), ("2000-01-01", 1), ("2999-01-01T10:00Z", 0)):
        listed = celery(shop, "list", "--since", since, "--format", "json")[1]
        assert len(listed.splitlines()) == found
    assert json.loads(celery(shop, "list", "--format", "json", "--until", "0s")[1])["attempts"] == 2
    status, printed = celery(shop, "list", "--until", "tomorrow")
    assert status == 2
    assert "'tomorrow' is no time; expected" in printed


PAGE = (Path(__file__).parents[2] / "docs" / "deadletters.md").read_text()


def test_the_page_for_the_person_on_call_is_right(shop, bury):
    """Each command on it is one, each reason is there, and its snippet runs."""
    [handle] = bury("a")
    commands = re.findall(r"^celery -A shop deadletters ([^#|\n]+)", PAGE, re.MULTILINE)
    assert len(commands) == 10
    for command in commands:
        arguments = command.replace("ID", handle.id).split()
        arguments += ["--dry-run"] * (arguments[0] == "replay" and "--dry-run" not in arguments)
        if arguments[0] == "discard":
            arguments = [*arguments, "--job", "nope"]
        done = CliRunner().invoke(deadletters, arguments, obj=SimpleNamespace(app=shop.app))
        assert done.exit_code == 0, done.output
    assert set(re.findall(r"^\| \w+ \| `([\w-]+)` ", PAGE, re.MULTILINE)) == set(Reason)
    [snippet] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(snippet, {"app": shop.app, "yesterday": datetime.now(UTC) - timedelta(days=1)})
    for name in re.findall(r"^\| `UMBEL_(\w+)`", PAGE, re.MULTILINE):
        assert name.lower() in Settings.model_fields

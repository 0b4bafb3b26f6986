"""The soak: its arithmetic, what it calls a failure, and one small row of it for real."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.process import eventually

from chaos.brokers import held, kept
from chaos.harness import QUEUE
from chaos.soak import report
from chaos.soak.outcome import Outcome
from chaos.soak.recovery import recoveries_s
from chaos.soak.results import Results
from chaos.soak.rows import CELERY, RABBITMQ, ROWS, TURN_MIN, UMBEL, VALKEY, cases
from chaos.tally import Run, Sent, Strike, Tally

KILLED, OTHER = 10, 20


def run(number: int, pid: int, begun_at: float, done_at: float | None = None) -> Run:
    """The first attempt of a job."""
    return Run(f"{number}-{begun_at}", number, 1, pid, begun_at, done_at)


def recovered(runs: list[Run], *strikes: Strike, sent_at: float = 0.0) -> list[float | None]:
    """Of one job with these runs."""
    return list(recoveries_s(strikes, Tally((Sent(1, sent_at, True),), {1: runs})))


def test_a_job_is_back_when_it_runs_again():
    """Not when it is done: how long it takes is its own affair."""
    hit, again = run(1, KILLED, 4.9), run(1, OTHER, 17.0, 20.0)
    assert recovered([hit, again], Strike(5, 6, frozenset({KILLED}))) == [11.0]


def test_who_was_not_hit_has_nothing_to_recover_from():
    """A run that goes on elsewhere, a job that was done, and one that was sent afterwards."""
    strike = Strike(5, 5, frozenset({KILLED}))
    assert recovered([run(1, OTHER, 4, 9)], strike) == [0.0]
    assert recovered([run(1, KILLED, 3, 4.5), run(1, OTHER, 15, 16)], strike) == [0.0]
    assert recovered([run(1, OTHER, 9, 10)], strike, sent_at=6) == [0.0]


def test_what_waits_has_to_begin():
    """A job that could not begin before is back when it has."""
    assert recovered([run(1, OTHER, 8.5, 9)], Strike(5, 7)) == [1.5]


def test_a_run_that_an_earlier_strike_ended_is_not_running():
    """Two strikes in a row, and nothing came of the first run: neither is recovered from."""
    strikes = (Strike(5, 5, frozenset({KILLED})), Strike(8, 8, frozenset({OTHER})))
    assert recovered([run(1, KILLED, 4)], *strikes) == [None, None]
    assert recovered([run(1, KILLED, 4), run(1, OTHER, 7), run(1, 30, 9, 9)], *strikes) == [2, 1]


@pytest.mark.parametrize(
    "broken",
    [
        {"lost": ["0:1"]},
        {"waiting": ["0:1"]},
        {"unexplained": ["0:1"]},
        {"wrong_records": ["0:1"]},
        {"dead_letters": 1},
        {"ended_workers": 1},
        {"unsettled": 1},
        {"troubles": ["no worker came up"]},
    ],
    ids=lambda broken: next(iter(broken)),
)
def test_each_broken_promise_is_a_failure(broken):
    """Of Umbel; nothing is asked of plain Celery."""
    assert len(Outcome("kill_worker", VALKEY, UMBEL, 1, 7, **broken).failures()) == 1
    assert not Outcome("kill_worker", VALKEY, CELERY, 1, 7, **broken).failures()


def test_what_a_strike_explains_is_none():
    """A job that was done twice, a run that was cut short."""
    assert not Outcome("kill_worker", VALKEY, UMBEL, 1, 7, twice=["0:1"], cut_short=3).failures()


@pytest.mark.brokers("valkey", "rabbitmq")
@pytest.mark.parametrize("subject", [UMBEL, CELERY])
def test_what_is_nowhere_is_told_from_what_waits(set_scene, subject):
    """Messages that wait, and those that a killed worker had in its hands, are still there."""
    scene = set_scene(subject)
    [worker] = scene.start_workers(1)
    scene.send(60.0)
    for _ in range(3):
        scene.send(60.0)
    scene.more_runs(2 - len(scene.effects))
    worker.close()
    assert kept(scene.broker) == {1, 2, 3, 4}


def test_what_was_done_is_nowhere(scene):
    """As is what was lost."""
    scene.start_workers(1)
    scene.send()
    scene.send(tracked=True)
    eventually(lambda: scene.tally().done.keys() == {1, 2}, 10)
    eventually(lambda: not held(scene.broker, QUEUE), 10)
    assert not kept(scene.broker)


def test_plain_celery_goes_through_it_once():
    """Umbel in each turn; both on the same broker, one after the other."""
    [row] = [row for row in ROWS if row.name == "kill_child"]
    due = [str(case) for case in cases([row], [VALKEY, RABBITMQ], 2, celery=True)]
    assert due == [
        "valkey-kill_child-umbel_app-1",
        "valkey-kill_child-celery_app-1",
        "rabbitmq-kill_child-umbel_app-1",
        "rabbitmq-kill_child-celery_app-1",
        "valkey-kill_child-umbel_app-2",
        "rabbitmq-kill_child-umbel_app-2",
    ]


def test_half_an_hour_is_not_more():
    """The shares of a whole run add up to about its time."""
    turns = round(30 / TURN_MIN)
    due = list(cases(ROWS, [VALKEY, RABBITMQ], turns, celery=True))
    assert sum(case.share_s / (turns if case.subject == UMBEL else 1) for case in due) < 2400


@pytest.fixture
def results() -> Results:
    """Two turns of Umbel and one of plain Celery."""
    about = {
        "date": "today",
        "machine": "this one",
        "servers": ["Valkey 9"],
        "packages": ["umbel 1"],
        "options": {"minutes": 30, "seed": 7, "brokers": [VALKEY]},
    }
    kills = {"times": 60, "accepted": 100, "recoveries_s": [2.0, 11.0]}
    return Results(
        about,
        [
            Outcome("kill_worker", VALKEY, UMBEL, 1, 7, **kills),
            Outcome("kill_worker", VALKEY, UMBEL, 2, 7, **kills),
            Outcome(
                *("kill_worker", VALKEY, CELERY, 1, 7),
                times=9,
                lost=["0:4"],
                waiting=["0:5", "0:6"],
                waited_s=30.0,
                recoveries_s=[0.0, None],
            ),
        ],
    )


def test_turns_are_added_up(results):
    """One line for each subject, made from what was saved."""
    lines = list(report.tables(results))
    ours = "| `kill -9` of a worker | **Umbel** | 120 | 200 | 0 | 0 | 0 | 0 | 0 | 2.0 s | 11.0 s |"
    assert ours in lines
    assert "|  | plain Celery | 9 | 0 | 0 | 1 | 2 | 0 | 0 | 0.0 s | over 30 s |" in lines


def test_an_aim_is_met_or_not(results):
    """A hundred kills, none lost, all back within a quarter of a minute."""
    assert any(line.endswith("15 s: met.") for line in report.tables(results))
    results.outcomes[1].recoveries_s.append(15.5)
    assert any(line.endswith("15 s: **not met**.") for line in report.tables(results))


def test_the_text_around_the_tables_stays(results, tmp_path: Path):
    """They stand between two marks, and are made from the saved file alone."""
    page = tmp_path / "reliability.md"
    page.write_text(f"before\n{report.BEGIN}\nold \\1 table\n{report.END}\nafter\n")
    results.save(tmp_path)
    report.write(Results.load(tmp_path), tmp_path)
    text = page.read_text()
    assert text.startswith(f"before\n{report.BEGIN}\n")
    assert text.endswith(f"{report.END}\nafter\n")
    assert "old" not in text
    assert "11.0 s" in text


def test_a_small_soak(tmp_path: Path):
    """One fault on one broker, by the command itself."""
    small = "--minutes 0.05 --brokers valkey --faults kill_child --lease-s 1 --seed 7"
    done = subprocess.run(
        [sys.executable, "-m", "chaos.soak", *small.split(), "--work", tmp_path / "work"],
        env=os.environ | {"PYTHONPATH": "tests"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ours, theirs = Results.load(tmp_path / "work").outcomes
    assert (ours.subject, theirs.subject) == (UMBEL, CELERY)
    for outcome in (ours, theirs):
        assert outcome.times >= 1
        assert outcome.accepted > 10
        assert not outcome.lost
    assert "`kill -9` of a pool's child" in (tmp_path / "work" / "reliability.md").read_text()

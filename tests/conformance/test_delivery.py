"""What becomes of a message when something fails or dies: sections 6 and 7 of the design."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest
from support.process import eventually

from umbel import BrokerUnavailable, JobFailed, JobState, StoreRequired
from umbel.consumers.deadletters import Kind, Reason

delivery = pytest.mark.promise("6 Delivery")
stores = pytest.mark.promise("7 Brokers and the store")


def kept(stage, job_id):
    """The dead letter of a job, once it is there."""
    [letter] = eventually(lambda: stage.letters(job_id), 20)
    return letter


@delivery
def test_dead_letter(stage):
    """A job that fails for good is a dead letter: reason, traceback, attempts, times."""
    handle = stage.app.flaky.request(stage.app.Work(case=stage.case(), fails=9))
    with pytest.raises(JobFailed, match="not yet"):
        handle.result(20)
    letter = kept(stage, handle.id)
    assert (letter.kind, letter.reason, letter.attempts) == (Kind.DEAD, Reason.FAILED, 3)
    assert "in flaky" in letter.traceback
    assert letter.produced_at
    assert handle.state() is JobState.FAILED


@delivery
def test_deadly(stage):
    """A message that keeps killing its process is dead-lettered after `max_deliveries` runs."""
    case = stage.case()
    sent = stage.app.deadly.send(stage.app.Work(case=case))
    assert kept(stage, sent.id).reason is Reason.CRASHED
    assert len(stage.marks(case)) == 2


@delivery
def test_too_long(stage):
    """`timeout_s` is hard on prefork, and the worker goes on."""
    handle = stage.app.endless.request(stage.app.Work(case=stage.case()))
    with pytest.raises(JobFailed, match="ran longer than timeout_s=0.5"):
        handle.result(20)
    assert kept(stage, handle.id).reason is Reason.TIMED_OUT


@delivery
def test_reject(stage):
    """Celery's own exceptions have their place: `Reject` is a dead letter."""
    sent = stage.app.rejects.send(stage.app.Work(case=stage.case()))
    assert kept(stage, sent.id).reason is Reason.REJECTED


@delivery
def test_replay(stage):
    """Dead letters are listed, shown, replayed (`--dry-run` first) and discarded by a command."""
    case = stage.case()
    sent = [stage.app.settled.send(stage.app.Work(case=case, fails=9)) for _ in range(2)]
    letters = [kept(stage, one.id) for one in sent]
    stage.eventually_marks(4, case)

    def run(*arguments: str) -> str:
        command = [sys.executable, "-m", "celery", "-A", "application", "deadletters", *arguments]
        return subprocess.run(
            command,
            env=stage.environment,
            cwd=stage.directory,
            capture_output=True,
            text=True,
            check=True,
        ).stdout

    assert letters[0].id in run("list", "--job", "conformance.settled")
    assert "fails for good" in run("show", letters[0].id)
    run("replay", "--dry-run", letters[0].id)
    assert len(stage.marks(case)) == 4
    run("replay", letters[0].id)
    stage.eventually_marks(6, case)
    run("discard", letters[1].id)
    assert not stage.letters(sent[1].id)


@delivery
def test_killed_worker(fresh):
    """A worker that is killed: another has its message within 15 s, and every job is done."""
    case = fresh.case()
    workers = [fresh.start_worker() for _ in range(2)]
    works = [fresh.app.Work(case=case, number=n, seconds=0.1) for n in range(30)]
    fresh.app.work.send_many(works)
    fresh.eventually_marks(8, case)
    workers[0].kill()

    def done() -> bool:
        return {one["number"] for one in fresh.marks(case)} == set(range(30))

    eventually(done, 15, lambda: str(fresh.marks(case)))
    assert len(fresh.marks(case)) <= 30 + 2
    assert fresh.app.app.dead_letters.count() == 0


@delivery
def test_frozen_worker(fresh):
    """A worker that stands still is taken over; when it wakes its late result is refused.

    A callback of its may come on RabbitMQ, which has no fence: a copy, by its id.
    """
    case = fresh.case()
    held = fresh.start_worker()
    sent = fresh.app.patient.request(fresh.app.Work(case=case), on_success=fresh.app.told)
    fresh.eventually_marks(1, case, "begun")
    held.freeze()
    fresh.start_worker()
    fresh.eventually_marks(2, case, "begun", timeout_s=30)
    (fresh.directory / f"go-{case}").touch()
    result = sent.result(20)
    held.thaw()
    fresh.app.work.request(fresh.app.Work(case=fresh.case())).result(20)
    held.stop()
    assert sent.result() == result
    told = [one["id"] for one in fresh.marks(sent.id)]
    assert len(set(told)) == 1
    assert len(told) == 1 or fresh.broker == "RabbitMQ"


@delivery
def test_drain(fresh):
    """SIGTERM: a worker takes no more and finishes what runs; what waits is there for the next."""
    case = fresh.case()
    worker = fresh.start_worker()
    fresh.app.work.send_many(fresh.app.Work(case=case, number=n, seconds=0.3) for n in range(6))
    fresh.eventually_marks(1, case)
    worker.terminate()
    assert worker.wait() == 0
    ran = len(fresh.marks(case))
    assert ran < 6
    fresh.start_worker()
    found = fresh.eventually_marks(6, case)
    assert sorted(one["number"] for one in found) == list(range(6))


@delivery
def test_broker_away(fresh):
    """A send to a broker that does not answer is `BrokerUnavailable`, in time."""
    fresh.app.work.send(fresh.app.Work(case="before"))
    began = time.monotonic()
    with fresh.frozen(), pytest.raises(BrokerUnavailable, match="within 2 s"):
        fresh.app.work.send(fresh.app.Work(case="meanwhile"))
    assert time.monotonic() - began < 5  # with the time to freeze it; a hang is what it is about


@delivery
def test_broker_restarts(fresh):
    """A broker that is killed and comes back has lost nothing; workers come back by themselves."""
    case = fresh.case()
    fresh.start_worker()
    works = [fresh.app.Work(case=case, number=n, seconds=0.05) for n in range(40)]
    fresh.app.work.send_many(works)
    fresh.eventually_marks(5, case)
    fresh.restart_broker()

    def done() -> bool:
        return {one["number"] for one in fresh.marks(case)} == set(range(40))

    eventually(done, 40, lambda: str(len(fresh.marks(case))))


@stores
def test_store(fresh, record_property):
    """The broker is the state store too: one URL is enough."""
    fresh.env.pop("UMBEL_STORE_URL", None)
    alone = fresh.load()
    try:
        handle = alone.work.request(alone.Work(case=fresh.case()))
    except StoreRequired as error:
        record_property("not_there", str(error))
        return
    assert handle.state() is JobState.QUEUED


@stores
def test_without_a_store(fresh):
    """What needs no state store works without one."""
    fresh.env.pop("UMBEL_STORE_URL", None)
    alone = fresh.load()
    assert alone.work.send(alone.Work(case=fresh.case())).name == "conformance.work"
    assert alone.app.publish(alone.Happened(case=fresh.case(), number=1)).id

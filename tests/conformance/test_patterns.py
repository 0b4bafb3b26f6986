"""Jobs, callbacks, queues, events and sagas: sections 2 and 5 of the design."""

from __future__ import annotations

import asyncio
import time

import pytest
from support.process import eventually

from umbel import (
    ContractError,
    JobCancelled,
    JobFailed,
    JobState,
    ResultTimeout,
    SagaFailed,
    SagaState,
    UnknownJob,
)

jobs = pytest.mark.promise("2 Jobs")
callbacks = pytest.mark.promise("5.1 Callbacks")
events = pytest.mark.promise("5.2 Events")
queues = pytest.mark.promise("5.3 Direct work queues")
sagas = pytest.mark.promise("5.4 Sagas")


@jobs
def test_send(stage):
    """`send`: the job runs once, and no result is kept."""
    case = stage.case()
    receipt = stage.app.work.send(stage.app.Work(case=case))
    [ran] = stage.eventually_marks(1, case)
    assert ran["id"] == receipt.id
    with pytest.raises(UnknownJob):
        stage.app.app.handle(receipt.id)


@jobs
def test_request(stage):
    """`request`: a handle with the state and the typed result, found again in any process."""
    handle = stage.app.work.request(stage.app.Work(case=stage.case(), number=7))
    assert handle.result(20) == stage.app.Result(number=7)
    again = stage.app.app.handle(handle.id)
    assert (again.state(), again.result()) == (JobState.SUCCEEDED, stage.app.Result(number=7))


@jobs
def test_result_in_time(stage):
    """`result(timeout_s)` gives up after its time, and the job goes on."""
    case = stage.case()
    handle = stage.app.patient.request(stage.app.Work(case=case))
    with pytest.raises(ResultTimeout):
        handle.result(0.1)
    (stage.directory / f"go-{case}").touch()
    handle.result(20)


@jobs
def test_send_many(stage):
    """`send_many`: all are checked before the first is sent; a receipt for each, in order."""
    case, work = stage.case(), stage.app.Work
    receipts = stage.app.work.send_many(work(case=case, number=n) for n in range(20))
    ran = {one["number"]: one["id"] for one in stage.eventually_marks(20, case)}
    assert [ran[number] for number in range(20)] == [receipt.id for receipt in receipts]
    wrong = work(case=case)
    wrong.number = "many"
    with pytest.raises(ContractError):
        stage.app.work.send_many([work(case=case), wrong])
    stage.app.work.request(work(case=stage.case())).result(20)
    assert len(stage.marks(case)) == 20


@jobs
def test_progress_and_cancel(stage):
    """Progress is seen while a job runs, and `cancel` reaches it."""
    case = stage.case()
    handle = stage.app.patient.request(stage.app.Work(case=case))
    progress = eventually(handle.progress, 20)
    assert (progress.done, progress.total, progress.note) == (1, 4, "waiting")
    assert handle.state() is JobState.RUNNING
    handle.cancel()
    with pytest.raises(JobCancelled):
        handle.result(20)
    assert not stage.marks(case, "went")


@jobs
def test_cancelled_before(stage):
    """A job that is cancelled before a worker has it never runs."""
    case, other = stage.case(), stage.case()
    handle = stage.app.work.request(stage.app.Work(case=case), delay_s=0.6)
    assert handle.cancel() is JobState.CANCELLED
    stage.app.work.request(stage.app.Work(case=other), delay_s=1.2).result(20)
    assert not stage.marks(case)


@jobs
def test_expires(stage):
    """What waits longer than `expires_s` is dropped, and its record says so."""
    case = stage.case()
    handle = stage.app.work.request(stage.app.Work(case=case), expires_s=0.2, delay_s=0.7)
    eventually(lambda: handle.state() is JobState.EXPIRED, 20, handle.record)
    assert not stage.marks(case)


@jobs
def test_job_id(stage):
    """A send that names its job may be repeated: the job runs once."""
    case, job_id = stage.case(), stage.case()
    for _ in range(2):
        handle = stage.app.work.request(stage.app.Work(case=case), job_id=job_id)
        handle.result(20)
    stage.app.work.request(stage.app.Work(case=stage.case())).result(20)
    assert len(stage.marks(case)) == 1


@jobs
def test_async(stage):
    """`async def` jobs, `asend`, `arequest` and `aresult`, on an event loop."""
    case = stage.case()

    async def ask() -> object:
        handle = await stage.app.awork.arequest(stage.app.Work(case=case, number=3))
        return await handle.aresult(20)

    assert asyncio.run(ask()) == stage.app.Result(number=3)
    stage.eventually_marks(1, case, "work")


@jobs
def test_correlation(stage):
    """What a job sends carries on its correlation id."""
    case = stage.case()
    stage.app.awork.send(stage.app.Work(case=case), correlation_id="order-7")
    [ran] = stage.eventually_marks(1, case, "work")
    assert ran["correlation_id"] == "order-7"


@jobs
def test_retry(stage):
    """Retries: at once, then after a pause; `attempt` counts them."""
    case = stage.case()
    handle = stage.app.flaky.request(stage.app.Work(case=case, fails=2))
    assert handle.result(20).number == 3
    runs = stage.marks(case)
    assert [run["attempt"] for run in runs] == [1, 2, 3]
    assert runs[2]["time"] - runs[1]["time"] >= 0.6


@jobs
def test_give_up_on(stage):
    """What no repetition mends (`give_up_on`) is not retried."""
    case = stage.case()
    handle = stage.app.flaky.request(stage.app.Work(case=case, number=-1))
    with pytest.raises(JobFailed, match="no repetition mends this"):
        handle.result(20)
    assert len(stage.marks(case)) == 1


@jobs
def test_delay(stage):
    """`delay_s`, and Celery's `countdown`, are never too short."""
    case, delays_s = stage.case(), {0: 0.5, 1: 1.2}
    sent = {}
    for number, delay_s in delays_s.items():
        work = stage.app.Work(case=case, number=number)
        sent[number] = time.time()
        stage.app.work.send(work, delay_s=delay_s)
        stage.app.work.apply_async((work,), countdown=delay_s)
    for ran in stage.eventually_marks(4, case):
        number = ran["number"]
        assert ran["time"] - sent[number] >= delays_s[number]


@jobs
def test_long_delay(stage):
    """Up to 30 days: what is delayed is held by the broker, and cancelled like any other."""
    handle = stage.app.work.request(stage.app.Work(case=stage.case()), delay_s=30 * 86400)
    assert stage.app.work.request(stage.app.Work(case=stage.case())).result(20)
    assert handle.state() is JobState.QUEUED
    assert handle.cancel() is JobState.CANCELLED


@callbacks
def test_told_of_success(stage):
    """`on_success` is told the typed result, under an id that derives from the job's."""
    work, told = stage.app.Work(case=stage.case(), number=5), stage.app.told
    sent = stage.app.settled.send(work, on_success=told, on_failure=stage.app.told_failure)
    [heard] = stage.eventually_marks(1, sent.id)
    assert (heard["what"], heard["number"]) == ("told", 5)
    assert heard["id"] != sent.id


@callbacks
def test_told_of_failure(stage):
    """`on_failure` is told once the job is given up, whatever ended it."""
    work, told = stage.app.Work(case=stage.case(), fails=9), stage.app.told_failure
    reasons = {"settled": "failed", "endless": "timed-out", "deadly": "crashed"}
    sent = {getattr(stage.app, job).send(work, on_failure=told).id: job for job in reasons}
    for job_id, job in sent.items():
        [heard] = stage.eventually_marks(1, job_id)
        assert (heard["what"], heard["reason"]) == ("told-failure", reasons[job])


@callbacks
def test_callback_of_a_wrong_type(stage):
    """A callback that takes something else is refused at `send`."""
    work = stage.app.Work(case=stage.case())
    with pytest.raises(ContractError, match="takes Completed"):
        stage.app.resize.send(stage.app.Width(case=work.case, widths=[]), on_success=stage.app.told)
    with pytest.raises(ContractError, match="takes a job whose message is Failed"):
        stage.app.work.send(work, on_failure=stage.app.told)


@events
def test_event(stage):
    """Each subscriber gets each event once, whatever fails, retries or crashes beside it."""
    case, numbers = stage.case(), list(range(12))
    for number in numbers:
        stage.app.app.publish(stage.app.Happened(case=case, number=number))
    for subscriber in ("first", "second", "audit", "failing"):
        found = stage.eventually_marks(12, case, subscriber)
        assert sorted(one["number"] for one in found) == numbers
    crashed = stage.eventually_marks(13, case, "crashing")
    assert sorted(one["number"] for one in crashed) == sorted([*numbers, 3])


@events
def test_patterns(stage):
    """`*` and `#` in a subscriber's pattern have AMQP's meaning."""
    case = stage.case()
    asyncio.run(stage.app.app.apublish(stage.app.Ended(case=case, number=1)))
    [found] = stage.eventually_marks(1, case)
    assert (found["what"], found["type"]) == ("audit", "Ended")


@events
def test_handling_id(stage):
    """Each handling is a job of its own, whose id derives from the event's and the subscriber."""
    case = stage.case()
    event = stage.app.app.publish(stage.app.Happened(case=case, number=1))
    [first] = stage.eventually_marks(1, case, "first")
    assert first["id"] == stage.app.first.handling_id(event.id)


@events
def test_away_and_unsubscribed(fresh):
    """A subscriber that was away gets what it missed; one that unsubscribed gets nothing."""
    case = fresh.case()
    fresh.start_worker().stop()
    for number in range(3):
        fresh.app.app.publish(fresh.app.Happened(case=case, number=number))
    assert fresh.app.app.unsubscribe("second") == 3
    fresh.app.app.publish(fresh.app.Happened(case=case, number=3))
    fresh.start_worker(queues=["conformance.first", "conformance.audit"])
    for subscriber in ("first", "audit"):
        found = fresh.eventually_marks(4, case, subscriber)
        assert sorted(one["number"] for one in found) == [0, 1, 2, 3]
    assert fresh.app.app.unsubscribe("second") == 0


@events
def test_competing(fresh):
    """Several processes of one subscriber share its events."""
    case = fresh.case()
    for _ in range(2):
        fresh.start_worker(queues=["conformance.first"])
    for number in range(40):
        fresh.app.app.publish(fresh.app.Happened(case=case, number=number))
    found = fresh.eventually_marks(40, case)
    assert sorted(one["number"] for one in found) == list(range(40))


@queues
def test_each_to_one(stage):
    """Many producers and consumers: each message goes to one of them."""
    case = stage.case()
    stage.app.work.send_many(stage.app.Work(case=case, number=n) for n in range(50))
    stage.app.work.request(stage.app.Work(case=stage.case())).result(20)
    found = stage.eventually_marks(50, case)
    assert sorted(one["number"] for one in found) == list(range(50))


@queues
def test_unknown_queue(fresh):
    """A worker of a queue that the app does not have ends with an error that lists those it has."""
    with pytest.raises(AssertionError, match=r"no queue 'urgnt' in this app; there are: .*urgent"):
        fresh.start_worker(queues=["urgnt"])


@queues
def test_some_queues(fresh):
    """A worker with `-Q` serves the queues that it names, and no other."""
    case = fresh.case()
    fresh.start_worker(queues=["ordered", "heavy"])
    fresh.app.work.send(fresh.app.Work(case=case))
    fresh.app.heavy.send(fresh.app.Work(case=case))
    fresh.app.ordered.send(fresh.app.Work(case=case, key="a"))
    found = fresh.eventually_marks(3, case)
    assert sorted(one["what"] for one in found) == ["in", "ordered", "out"]


@queues
def test_priorities(fresh):
    """The urgent never waits behind all that is there (RabbitMQ: the levels are served in turn)."""
    case = fresh.case()
    for level in ("low", "normal", "high"):
        for number in range(8):
            work = fresh.app.Work(case=case, key=level, number=number)
            fresh.app.urgent.send(work, priority=level)
    fresh.start_worker(queues=["urgent"])
    order = [one["key"] for one in fresh.eventually_marks(24, case)]
    assert order.index("high") <= 4


@queues
def test_strict_priorities(fresh, record_property):
    """Of what waits the urgent goes first, strictly; a worker says at its start where not."""
    case = fresh.case()
    if fresh.broker == "RabbitMQ":
        worker = fresh.start_worker(queues=["urgent"])
        assert "queue urgent: RabbitMQ does not keep priorities strictly" in worker.logs()
        record_property("not_there", "preferred, not strict: see docs/queues.md, Priorities")
        return
    for level in ("low", "normal", "high"):
        fresh.app.urgent.send(fresh.app.Work(case=case, key=level), priority=level)
    fresh.start_worker(queues=["urgent"])
    order = [one["key"] for one in fresh.eventually_marks(3, case)]
    assert order == ["high", "normal", "low"]


@queues
def test_prefetch(stage):
    """`prefetch` is of each queue: one heavy job at a time on a worker with more places."""
    case, beside = stage.case(), stage.case()
    for number in range(4):
        stage.app.heavy.send(stage.app.Work(case=case, number=number))
    stage.app.work.send(stage.app.Work(case=beside))
    found = stage.eventually_marks(8, case)
    assert [one["what"] for one in found] == ["in", "out"] * 4
    stage.eventually_marks(1, beside)


@queues
def test_shards(stage):
    """Shards keep the order of each key, through retries."""
    case = stage.case()
    for number in range(6):
        for key in "abc":
            work = stage.app.Work(case=case, key=key, number=number, fails=number == 2)
            stage.app.ordered.send(work)
    found = stage.eventually_marks(21, case)
    for key in "abc":
        numbers = [one["number"] for one in found if one["key"] == key]
        assert numbers == [0, 1, 2, 2, 3, 4, 5]


@queues
def test_concurrency_key(stage):
    """Of the messages with a `concurrency_key` one runs at a time."""
    case = stage.case()
    for _ in range(3):
        for key in "ab":
            stage.app.exclusive.send(stage.app.Work(case=case, key=key))
    found = stage.eventually_marks(12, case, timeout_s=40)
    for key in "ab":
        assert [one["what"] for one in found if one["key"] == key] == ["in", "out"] * 3


@queues
def test_idempotency_key(stage):
    """Of the messages with an `idempotency_key` one is run, and the others get its result."""
    work = stage.app.Work(case=stage.case())
    handles = [stage.app.once.request(work) for _ in range(3)]
    assert len({handle.result(30) for handle in handles}) == 1
    assert len(stage.marks(work.case)) == 1


@queues
def test_failed_idempotency_key(stage):
    """A failure frees the `idempotency_key`."""
    case = stage.case()
    failed = stage.app.once.request(stage.app.Work(case=case, fails=1))
    with pytest.raises(JobFailed):
        failed.result(20)
    again = stage.app.once.request(stage.app.Work(case=case))
    assert again.result(20) == again.id


@sagas
def test_saga_done(stage):
    """All steps are done in their order; a later one knows what an earlier one returned."""
    case = stage.case()
    run = stage.app.order.start(stage.app.Work(case=case)).result(30)
    assert run.result(stage.app.reserve) == 7
    done = stage.marks(case)
    assert [one["what"] for one in done] == ["reserve", "charge"]
    assert done[1]["number"] == 7


@sagas
def test_saga_undone(stage):
    """A step that fails undoes what was done, in reverse, and the handle shows the whole."""
    case = stage.case()
    saga = stage.app.order.start(stage.app.Work(case=case, fails=1))
    with pytest.raises(SagaFailed, match="no money"):
        saga.result(30)
    assert saga.state() is SagaState.UNDONE
    assert [one["what"] for one in stage.marks(case)] == ["reserve", "charge", "refund", "release"]
    assert [step.state for step in saga.steps()] == ["undone", "undone"]

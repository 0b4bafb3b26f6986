"""The application of the conformance suite: this file, unchanged, on every broker.

Only UMBEL_BROKER_URL and UMBEL_STORE_URL differ. Each message says of which case it is, so that
tests can share a worker.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from celery.exceptions import Reject
from marks import mark
from pydantic import SecretStr

from umbel import (
    Completed,
    Event,
    Failed,
    JobContext,
    Message,
    Retry,
    SagaRun,
    Step,
    Umbel,
    WorkQueue,
    upcast,
)

app = Umbel("conformance", lease_s=2, broker_heartbeat=2, publish_timeout_s=2)


class Work(Message, name="conformance.work", version=1):
    """What most jobs take."""

    case: str
    number: int = 0
    key: str = ""
    fails: int = 0
    seconds: float = 0


class Result(Message, name="conformance.result", version=1):
    """What some return."""

    number: int


class Secret(Message, name="conformance.secret", version=1):
    """With something that is not to be seen."""

    case: str
    token: SecretStr


class WidthV1(Message, name="conformance.width", version=1):
    """As it was sent last year."""

    case: str
    width: int


class Width(Message, name="conformance.width", version=2):
    """As it is today."""

    case: str
    widths: list[int]


@upcast(WidthV1, to=Width)
def one_width(old: WidthV1) -> Width:
    """Carried forward."""
    return Width(case=old.case, widths=[old.width])


class Happened(Event, name="conformance.happened", version=1):
    """Has many subscribers."""

    case: str
    number: int


class Ended(Event, name="conformance.other.ended", version=1):
    """Has those with a pattern."""

    case: str
    number: int


@app.job
def work(message: Work, context: JobContext) -> Result:
    """Notes that it ran."""
    facts = {"attempt": context.attempt, "correlation_id": context.correlation_id}
    mark(message.case, "work", number=message.number, id=context.job_id, **facts)
    time.sleep(message.seconds)
    return Result(number=message.number)


@app.job(name="conformance.async")
async def awork(message: Work, context: JobContext) -> Result:
    """The same, on an event loop; it sends on."""
    await work.asend(message)
    return Result(number=message.number)


@app.job(name="conformance.flaky", retry=Retry(1, [0.6], give_up_on=(KeyError,)))
def flaky(message: Work, context: JobContext) -> Result:
    """Fails as often as it is told to."""
    mark(message.case, "flaky", attempt=context.attempt)
    if message.number < 0:
        raise KeyError("no repetition mends this")
    if context.attempt <= message.fails:
        raise ValueError("not yet")
    return Result(number=context.attempt)


@app.job(name="conformance.rejects")
def rejects(message: Work) -> None:
    """By Celery's exception."""
    raise Reject("not for me", requeue=False)


@app.job(name="conformance.deadly", max_deliveries=2)
def deadly(message: Work) -> None:
    """Takes its process along."""
    mark(message.case, "deadly")
    os.kill(os.getpid(), signal.SIGKILL)


@app.job(name="conformance.endless", timeout_s=0.5)
def endless(message: Work) -> None:
    """Never looks up."""
    mark(message.case, "endless")
    time.sleep(60)


@app.job(name="conformance.patient")
def patient(message: Work, context: JobContext) -> Result:
    """Goes on until it is cancelled, or till there is a file named after its case."""
    mark(message.case, "begun")
    while not Path(f"go-{message.case}").exists():
        context.progress(1, 4, note="waiting")
        context.raise_if_cancelled()
        time.sleep(0.05)
    mark(message.case, "went")
    return Result(number=os.getpid())


@app.job(name="conformance.urgent", queue=WorkQueue("urgent", priorities=True))
def urgent(message: Work) -> None:
    """On a queue with priorities."""
    mark(message.case, "urgent", number=message.number, key=message.key)


@app.job(name="conformance.heavy", queue=WorkQueue("heavy", prefetch=1))
def heavy(message: Work) -> None:
    """One at a time on a worker, whatever places that has."""
    mark(message.case, "in", number=message.number)
    time.sleep(0.1)
    mark(message.case, "out", number=message.number)


ORDERED = WorkQueue("ordered", shards=4)


@app.job(
    name="conformance.ordered",
    queue=ORDERED,
    shard_key="key",
    retry=Retry(immediate=1),
    max_deliveries=9,
)
def ordered(message: Work, context: JobContext) -> None:
    """In the order of each key."""
    mark(message.case, "ordered", key=message.key, number=message.number, id=context.job_id)
    if context.attempt <= message.fails:
        raise ValueError("not yet")


@app.job(name="conformance.exclusive", concurrency_key="key")
def exclusive(message: Work) -> None:
    """One at a time of a key, anywhere."""
    mark(message.case, "in", key=message.key)
    time.sleep(0.1)
    mark(message.case, "out", key=message.key)


@app.job(name="conformance.once", idempotency_key=lambda message: message.case + message.key)
def once(message: Work, context: JobContext) -> str:
    """One of a key."""
    mark(message.case, "once", id=context.job_id)
    time.sleep(0.2)
    if message.fails:
        raise ValueError("does not count")
    return context.job_id


@app.job(name="conformance.settled", retry=Retry(immediate=1), max_deliveries=9)
def settled(message: Work, context: JobContext) -> Result:
    """Ends as it is told to; its last line is the mark."""
    mark(message.case, "settled", id=context.job_id, attempt=context.attempt)
    if message.fails:
        raise ValueError("fails for good")
    return Result(number=message.number)


@app.job(name="conformance.told", queue="told")
def told(message: Completed[Result], context: JobContext) -> None:
    """Hears of success."""
    mark(message.job_id, "told", id=context.job_id, number=message.result.number)


@app.job(name="conformance.told-failure", queue="told")
def told_failure(message: Failed, context: JobContext) -> None:
    """Hears of failure."""
    mark(message.job_id, "told-failure", id=context.job_id, reason=message.reason)


@app.job(name="conformance.keeps")
def keeps(message: Secret) -> None:
    """Sees the secret, and fails."""
    mark(message.case, "keeps", right=message.token.get_secret_value() == "hunter2")
    raise ValueError("cannot keep it")


@app.job
def resize(message: Width) -> list[int]:
    """Whatever version was sent."""
    return message.widths


@app.subscribe(Happened)
def first(event: Happened, context: JobContext) -> None:
    """Quick and sound."""
    mark(event.case, "first", number=event.number, id=context.job_id)


@app.subscribe(Happened, retry=Retry(immediate=1))
def second(event: Happened, context: JobContext) -> None:
    """Has a second try with every fifth."""
    if event.number % 5 == 0 and context.attempt == 1:
        raise ValueError("again")
    mark(event.case, "second", number=event.number, id=context.job_id)


@app.subscribe(Happened)
def failing(event: Happened) -> None:
    """Fails for good, always."""
    mark(event.case, "failing", number=event.number)
    raise ValueError("never")


@app.subscribe(Happened, max_deliveries=9)
def crashing(event: Happened) -> None:
    """Takes its process along in the middle of one of a thousand, the first time."""
    mark(event.case, "crashing", number=event.number)
    if event.number % 1000 == 3 and _first_time(f"crashed-{event.case}-{event.number}"):
        os.kill(os.getpid(), signal.SIGKILL)


@app.subscribe(Happened, broadcast=True)
def everywhere(event: Happened) -> None:
    """On each worker."""
    mark(event.case, "everywhere", number=event.number, worker=os.getppid())


@app.subscribe("conformance.#")
def audit(event: Event) -> None:
    """Of every kind."""
    if isinstance(event, Happened | Ended):
        mark(event.case, "audit", number=event.number, type=type(event).__name__)


def _first_time(name: str) -> bool:
    try:
        Path(name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@app.job(name="conformance.reserve")
def reserve(message: Work, context: JobContext) -> int:
    """The first step."""
    mark(message.case, "reserve", id=context.job_id)
    return 7


@app.job(name="conformance.release")
def release(message: Work, context: JobContext) -> None:
    """Undoes it."""
    mark(message.case, "release", id=context.job_id)


@app.job(name="conformance.charge")
def charge(message: Work, context: JobContext) -> None:
    """The second; it knows what the first returned."""
    mark(message.case, "charge", id=context.job_id, number=message.number)
    if message.fails:
        raise ValueError("no money")


@app.job(name="conformance.refund")
def refund(message: Work, context: JobContext) -> None:
    """Undoes that."""
    mark(message.case, "refund", id=context.job_id)


def _to_charge(run: SagaRun[Work]) -> Work:
    return run.message.model_copy(update={"number": run.result(reserve)})


order = app.saga(
    "order", steps=[Step(reserve, undo=release), Step(charge, undo=refund, message=_to_charge)]
)


@app.task(name="conformance.add", shared=False)
def add(one: int, other: int) -> int:
    """A plain task of Celery's."""
    return one + other


@app.task(name="conformance.numbers", shared=False)
def numbers(results: list[dict[str, int]]) -> int:
    """A chord's end."""
    return sum(result["number"] for result in results)

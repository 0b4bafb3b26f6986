"""One delivery, from a message's payload to its outcome, in the process that runs the job.

Read `deliver` from the top: resolve what came, run it, decide what follows, settle. Every delivery
ends in one outcome (`umbel.consumers.outcomes`), and `settle` is the one exit. What ends a delivery
from outside this process (a crash, a time limit) is in `umbel.consumers.request`, and takes the
same exits.
"""

from __future__ import annotations

import asyncio
import logging
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from time import monotonic, sleep
from typing import Any, NamedTuple, NoReturn, Protocol, Self, cast

from celery.exceptions import Ignore, Reject
from celery.exceptions import Retry as CeleryRetry
from kombu.utils.json import dumps
from pydantic import ValidationError

from umbel.config.errors import ContractError, JobCancelled, JobFailed
from umbel.consumers.callbacks import tell_dropped, tell_failure, tell_success
from umbel.consumers.deadletters import (
    DeadLetter,
    Kind,
    Reason,
    describe,
    headers_of,
    letter_id,
    traceback_of,
)
from umbel.consumers.keys import Once, Reserved
from umbel.consumers.letterbox import DeadLetters
from umbel.consumers.loop import ProcessLoop
from umbel.consumers.outcomes import (
    Cancelled,
    Dead,
    Done,
    Dropped,
    Lost,
    Moved,
    Outcome,
    Passed,
    Quarantined,
    Retried,
    Returned,
)
from umbel.jobs import versions
from umbel.jobs.context import JobContext, current
from umbel.jobs.contracts import Message
from umbel.jobs.job import Job, JobApp
from umbel.jobs.outages import AWAY, held, still_held, wait_out
from umbel.jobs.records import JobState, Progress
from umbel.jobs.wire import Checked, Envelope, Sealed, fence_of, is_tracked
from umbel.routing.valkey import Holding

logger = logging.getLogger("umbel.worker")

MAX_RETURNS = 120
"""How often a message comes back for a newer worker before it is quarantined: ten minutes."""

LOOK_S = 0.5
"""How often a job that waits in its place looks whether it is still its own."""

_loop = ProcessLoop()


class WorkerApp(JobApp, Protocol):
    """What a worker needs of its app besides."""

    @property
    def amqp(self) -> Any: ...
    @property
    def dead_letters(self) -> DeadLetters: ...
    @property
    def once(self) -> Once: ...
    @property
    def events(self) -> Any: ...  # Celery's


class Delivery(NamedTuple):
    """One message at one job, once.

    Attributes:
        job: which is to run.
        request: Celery's facts of the message, a `celery.app.task.Context`.
        envelope: our headers.
        reruns: runs before this one within the same delivery: retries that keep their place.
    """

    job: Job[Any, Any, Any]
    request: Any
    envelope: Envelope
    reruns: int = 0

    @classmethod
    def of(cls, job: Job[Any, Any, Any], request: Any) -> Self:
        """The first run of what came."""
        return cls(job, request, Envelope.read(vars(request)))

    @property
    def app(self) -> WorkerApp:
        """The job's, which here has more to it."""
        return cast(WorkerApp, self.job.app)

    @property
    def contract(self) -> type[Message]:
        """The class of the message.

        Raises:
            ContractError: a subscriber that takes several events knows none of this name.
        """
        return self.job.contract_for(self.envelope.contract)

    @property
    def attempt(self) -> int:
        """Which run this is, from 1."""
        return int(self.request.retries or 0) + 1 + self.reruns

    @property
    def job_id(self) -> str:
        """The job's id."""
        return str(self.request.id)

    @property
    def tracked(self) -> bool:
        """Whether the store has, or shall have, a record."""
        return is_tracked(self.request) and self.app.store is not None

    def context(self, reserved: Reserved) -> JobContext:
        """What the job gets as its second parameter."""
        correlation_id = self.envelope.correlation_id or self.job_id
        saga = self.envelope.saga or ""
        report = self._report(reserved)
        return JobContext(self.job_id, self.attempt, correlation_id, report, saga)

    def begin(self, progress: Progress | None = None) -> tuple[JobState, bool]:
        """Tell the record that this run is on. Returns its state and if the end is wanted."""
        if not self.tracked:
            return JobState.RUNNING, False
        return self.app.records.running(
            self.job_id,
            name=self.job.name,
            attempt=self.attempt,
            progress=progress,
            fence=fence_of(self.request),
        )

    @property
    def max_deliveries(self) -> int:
        """Runs that may end without an outcome."""
        return self.job.max_deliveries or self.app.settings.max_deliveries

    @property
    def queue(self) -> str:
        """Where the message was."""
        came_by = self.request.delivery_info or {}
        return came_by.get("routing_key") or self.job.work_queue.at(None)

    @property
    def lost(self) -> bool:
        """Whether another worker has the message by now: this one was stopped or cut off."""
        return held(self.request) is Holding.NO

    def _report(self, reserved: Reserved) -> Any:
        limit_s = None if self.job.is_async else self.job.timeout_s
        ends_at = monotonic() + limit_s if limit_s else float("inf")

        def report(progress: Progress | None) -> bool:
            wanted = reserved.lost
            with suppress(*AWAY):  # that nobody can be told is no reason to fail
                if progress:
                    send_progress(self, progress)
                wanted = wanted or self.lost or self.begin(progress)[1]
            return wanted or monotonic() >= ends_at

        return report


def deliver(job: Job[Any, Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `job` on what a message carried. Returns the result, or raises Celery's signal."""
    delivery = Delivery.of(job, job._get_request())
    with Reserved(delivery.app) as reserved:
        outcome = outcome_of(delivery, args, kwargs, reserved)
        while job.plan.keeps_order and (rest := in_place(delivery, outcome)):
            delivery = rest
            outcome = outcome_of(delivery, args, kwargs, reserved)
        return settle_at_last(delivery, outcome)


def settle_at_last(delivery: Delivery, outcome: Outcome) -> Any:
    """`settle`, once the broker and the store can be written."""
    while True:
        try:
            return settle(delivery, outcome)
        except AWAY as error:
            if isinstance(outcome, Dead) and error is outcome.error:
                raise  # the job's own, and settled
            wait_out(delivery.request, error)


def outcome_of(
    delivery: Delivery, args: tuple[Any, ...], kwargs: dict[str, Any], reserved: Reserved
) -> Outcome:
    """Resolve, check, run."""
    message = checked(delivery, args, kwargs, reserved)
    return run(delivery, message, reserved) if isinstance(message, Message) else message


def checked(
    delivery: Delivery, args: tuple[Any, ...], kwargs: dict[str, Any], reserved: Reserved
) -> Message | Outcome:
    """The message that is to be run now, or what is to come of it without a run."""
    try:
        if not_for_us := without_a_run(delivery):
            return not_for_us
        message = received(delivery.contract, args, kwargs, delivery.envelope)
        if not_now := elsewhere(delivery, message) or reserved.reserve(delivery, message):
            return not_now
        state, wanted = delivery.begin()
    except ContractError as error:
        return Quarantined(error)
    except AWAY as error:
        return Returned(f"the state store does not answer ({error})", counted=False)
    if wanted or state is JobState.CANCELLED:
        return Cancelled()
    return Dropped(state) if state.final else message


def without_a_run(delivery: Delivery) -> Outcome | None:
    """What the envelope alone decides."""
    contract, envelope = delivery.contract, delivery.envelope
    if delivery.lost:
        return Lost()
    if envelope.deliveries and envelope.deliveries >= delivery.max_deliveries:
        why = f"{envelope.deliveries} workers died in the middle of it"
        return Dead(JobFailed(why, delivery.job_id), Reason.CRASHED)
    if (envelope.version or 0) > contract.contract_version:
        return too_new(envelope, contract)
    return None


def elsewhere(delivery: Delivery, message: Message) -> Moved | None:
    """Where a message belongs that its producer put into the wrong shard."""
    if not delivery.job.work_queue.shards:
        return None
    queue = delivery.job.queue_for(message)
    return None if queue == delivery.queue else Moved(queue)


def in_place(delivery: Delivery, outcome: Outcome) -> Delivery | None:
    """The next run of a message that keeps its place in its shard, after the pause before it."""
    match outcome:
        case Retried(error, delay_s):
            if delivery.tracked:
                delivery.app.records.retrying(delivery.job_id, describe(error))
            delivery.job.send_event("task-retried", exception=describe(error), traceback="")
            following = delivery._replace(reruns=delivery.reruns + 1)
        case Returned(counted=False, delay_s=delay_s):
            following = delivery
        case _:
            return None
    until = monotonic() + delay_s
    while (left_s := until - monotonic()) > 0 and not following.lost:
        sleep(min(left_s, LOOK_S))
    return following


def run(delivery: Delivery, message: Message, reserved: Reserved) -> Outcome:
    """The job itself, and what its end means."""
    job, context = delivery.job, delivery.context(reserved)
    inside = current.set(context)
    try:
        return Done(runner.get()(delivery, message, context), reserved.once)
    except (Ignore, Reject, CeleryRetry) as signal:
        return Passed(signal)
    except (JobCancelled, asyncio.CancelledError) as error:
        return Cancelled() if delivery.begin()[1] else failure(delivery, _unasked(job, error))
    except Exception as error:
        return failure(delivery, error)
    finally:
        current.reset(inside)


def call(delivery: Delivery, message: Message, context: JobContext) -> Sealed:
    """The function, on the process's event loop if it is async."""
    job = delivery.job
    if not job.is_async:
        return job.encode_result(job(message, context))
    returned = _loop.run(job(message, context), job.timeout_s, lambda: context.cancelled)
    return job.encode_result(returned)


Runner = Callable[[Delivery, Message, JobContext], Sealed]

runner: ContextVar[Runner] = ContextVar("umbel_runner", default=call)
"""What does the work: the job's function, or a loop that pulls (`umbel.consumers.pull`)."""


def failure(delivery: Delivery, error: Exception) -> Retried | Dead:
    """By the job's policy: another run, or the end."""
    policy = delivery.job.retry_policy
    delay_s = policy.delay_s(error, delivery.attempt) if policy else None
    if delay_s is not None:
        return Retried(error, delay_s)
    return Dead(error, Reason.TIMED_OUT if isinstance(error, TimeoutError) else Reason.FAILED)


def too_new(envelope: Envelope, contract: type[Message]) -> Outcome:
    """Of a contract's version that only a newer worker knows: leave it to one, for a while."""
    why = (
        f"the message is of version {envelope.version}, this worker knows "
        f"{contract.contract_version} of {contract.contract_name}"
    )
    if envelope.returns < MAX_RETURNS:
        return Returned(why, counted=True)
    return Quarantined(ContractError(contract.contract_name, [why]), Reason.TOO_NEW)


def settle(delivery: Delivery, outcome: Outcome) -> Any:
    """Make the outcome true, then let Celery acknowledge: that is what returning or raising does.

    Whatever is to survive (a retry, a dead letter) is written before, so that a crash in between
    repeats it instead of losing it. Who has lost the message writes nothing.
    """
    if not still_held(delivery.request):
        outcome = Lost()
    match outcome:
        case Done(result, once):
            if once:
                delivery.app.once.remember(once, result)
            tell_success(delivery, result.value)
            return result
        case Retried(error, delay_s):
            retry(delivery, error, delay_s)
        case Returned():
            give_back(delivery, outcome)
        case Moved(queue):
            move(delivery, queue)
        case Dead(error, reason):
            bury(delivery, Kind.DEAD, reason, error)
            raise portable(error)
        case Quarantined(error, reason):
            bury(delivery, Kind.QUARANTINE, reason, error)
            raise error
        case Cancelled():
            announce_cancelled(delivery)
            raise Ignore("cancelled")
        case Lost() | Dropped():
            raise Ignore(outcome.why)
        case Passed(signal):
            if isinstance(signal, Reject) and not signal.requeue:
                bury(delivery, Kind.DEAD, Reason.REJECTED, signal)
            raise signal


def retry(delivery: Delivery, error: Exception, delay_s: float) -> NoReturn:
    """Send the message again for its next run."""
    again(delivery, delivery.envelope._replace(deliveries=0), delay_s, delivery.attempt + 1)
    raise CeleryRetry(exc=portable(error), when=delay_s)


def give_back(delivery: Delivery, returned: Returned) -> NoReturn:
    """Send the message again for the same run."""
    if delivery.job.plan.keeps_order:
        sleep(returned.delay_s)
        raise Reject(returned.why, requeue=True)  # to the head of its queue
    envelope = delivery.envelope
    following = envelope._replace(returns=envelope.returns + returned.counted)
    again(delivery, following, returned.delay_s, attempt=delivery.attempt)
    logger.log(
        logging.DEBUG if returned.quiet else logging.WARNING,
        "job %s is put off for %g s: %s",
        *(delivery.job_id, returned.delay_s, returned.why),
        extra={"action": "returned", "job_id": delivery.job_id},
    )
    if returned.counted:
        raise CeleryRetry(message=returned.why, when=returned.delay_s)
    raise Ignore(returned.why)  # it has not begun, and the record cannot be told


def move(delivery: Delivery, queue: str) -> NoReturn:
    """Send the message to the shard that it belongs to."""
    again(delivery, delivery.envelope, 0, attempt=delivery.attempt, queue=queue)
    logger.warning(
        "job %s was in %s and belongs into %s: its producer counts other shards",
        *(delivery.job_id, delivery.queue, queue),
        extra={"action": "moved", "job_id": delivery.job_id},
    )
    raise Ignore(f"moved to {queue}")


def again(
    delivery: Delivery,
    envelope: Envelope,
    delay_s: float,
    attempt: int,
    queue: str | None = None,
) -> None:
    """Publish a copy of the message, as it came but for what is counted."""
    request = delivery.request
    args = [Checked(arg) if isinstance(arg, dict) else arg for arg in request.args or ()]
    delivery.job.signature_from_request(
        request,
        args,
        request.kwargs,
        queue=delivery.app.amqp.queue(queue or delivery.queue),
        countdown=delay_s or None,
        retries=attempt - 1,
        headers={**(request.headers or {}), **envelope.headers()},
        argsrepr=request.get("argsrepr"),
        kwargsrepr=request.get("kwargsrepr"),
    ).apply_async()


def bury(delivery: Delivery, kind: Kind, reason: Reason, error: BaseException) -> None:
    """Keep the message with what ended it, and tell whoever wants to know."""
    request, envelope = delivery.request, delivery.envelope
    embedded = {
        "callbacks": request.callbacks,
        "errbacks": request.errbacks,
        "chain": request.chain,
        "chord": request.chord,
    }
    body = dumps([request.args, request.kwargs, embedded]).encode()
    came_by = request.delivery_info or {}
    delivery.app.dead_letters.add(
        DeadLetter(
            id=letter_id(delivery.job_id, envelope.produced_at, body),
            kind=kind,
            reason=reason,
            error=describe(error),
            traceback=traceback_of(error),
            queue=delivery.queue,
            job=delivery.job.name,
            job_id=delivery.job_id,
            attempts=delivery.attempt if kind is Kind.DEAD else delivery.attempt - 1,
            produced_at=envelope.produced_at,
            shown=request.get("argsrepr") or "",
            content_type="application/json",
            content_encoding="utf-8",
            headers=headers_of(request),
            properties={
                "correlation_id": request.correlation_id,
                "reply_to": request.reply_to,
                "priority": came_by.get("priority"),
            },
            body=body,
        )
    )
    tell_failure(delivery, reason.value, describe(error))


def announce_cancelled(delivery: Delivery) -> None:
    """To the record and to Flower."""
    job, request = delivery.job, delivery.request
    tell_dropped(delivery, "cancelled")
    job.backend.mark_as_revoked(
        delivery.job_id, "cancelled", request=request, store_result=not request.ignore_result
    )
    job.send_event("task-revoked", terminated=False, signum=None, expired=False)


def send_progress(delivery: Delivery, progress: Progress) -> None:
    """To Flower: Celery's event state takes any ``task-…`` event as a state of that name."""
    percent = progress.percent
    done = f"{progress.done:g}" if percent is None else f"{percent:.0f} %"
    events, result = delivery.app.events, f"{done} {progress.note}".strip()
    # Not by the task, which looks for a run in this thread, and it may be in another one.
    with events.default_dispatcher(hostname=delivery.request.hostname) as dispatcher:
        dispatcher.send("task-progress", uuid=delivery.job_id, result=result, retry=True)


def received(
    contract: type[Message], args: Sequence[Any], kwargs: Mapping[str, Any], envelope: Envelope
) -> Message:
    """The message that a job's payload is, after the consumer's check, carried to today's version.

    Raises:
        ContractError: it does not fit.
    """
    try:
        payload = only(contract, args, kwargs)
        return versions.received(contract, payload, envelope.contract, envelope.version)
    except ContractError:
        raise
    except Exception as error:  # a validator of the contract's own, text that is no Unicode
        raise ContractError(contract.contract_name, [describe(error)]) from error


def only(contract: type[Message], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """The one argument that a job's message has.

    Raises:
        ContractError: there are more, or none.
    """
    if len(args) != 1 or kwargs:
        given = f"{len(args)} positional and {len(kwargs)} keyword arguments"
        raise ContractError(contract.contract_name, [f"expected one message, got {given}"])
    return args[0]


def portable(error: Exception) -> Exception:
    """The error, or one with its text where it could not travel or would do harm.

    Celery passes errors to the worker's main process pickled, and a MemoryError ends that process.
    """
    try:
        if not isinstance(error, MemoryError | ValidationError):
            pickle.loads(pickle.dumps(error))  # noqa: S301  our own pickle, a moment old
            return error
    except Exception:  # noqa: S110  whatever a stranger's __reduce__ raises means: not portable
        pass
    return JobFailed(describe(error)).with_traceback(error.__traceback__)


def _unasked(job: Job[Any, Any, Any], error: BaseException) -> Exception:
    """A job that gave up although nobody cancelled it: its time was over, or it just said so."""
    if job.timeout_s and not job.is_async:
        return TimeoutError(f"ran longer than timeout_s={job.timeout_s:g}")
    return JobFailed(f"{describe(error)}: raised by the job, nobody had cancelled it")

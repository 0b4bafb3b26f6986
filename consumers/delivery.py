"""One delivery, from a message's payload to its outcome, in the process that runs the job.

Read `deliver` from the top: resolve what came, run it, decide what follows, settle. Every delivery
ends in one outcome (`umbel.consumers.outcomes`), and `settle` is the one exit. What ends a delivery
from outside this process (a crash, a time limit) is in `umbel.consumers.request`, and takes the
same exits.
"""

from __future__ import annotations

import asyncio
import pickle
from dataclasses import dataclass, replace
from functools import cached_property
from time import monotonic
from typing import Any, NoReturn, Protocol, cast

from celery.exceptions import Ignore, Reject
from celery.exceptions import Retry as CeleryRetry
from kombu.exceptions import OperationalError
from kombu.utils.json import dumps
from pydantic import ValidationError
from redis.exceptions import ConnectionError as StoreConnectionError
from redis.exceptions import TimeoutError as StoreTimeoutError

from umbel.config.errors import ContractError, JobCancelled, JobFailed
from umbel.consumers.deadletters import (
    DeadLetter,
    DeadLetters,
    Kind,
    Reason,
    describe,
    traceback_of,
)
from umbel.consumers.loop import ProcessLoop
from umbel.consumers.outcomes import (
    Cancelled,
    Dead,
    Done,
    Dropped,
    Outcome,
    Passed,
    Quarantined,
    Retried,
    Returned,
)
from umbel.jobs.context import JobContext, current
from umbel.jobs.contracts import Message
from umbel.jobs.job import Job, JobApp
from umbel.jobs.records import JobState, Progress
from umbel.jobs.wire import Checked, Envelope, is_tracked

RETURN_AFTER_S = 5.0
"""Pause before a message that this worker is too old for, or that found no store, comes back."""
MAX_RETURNS = 120
"""How often a message comes back for a newer worker before it is quarantined: ten minutes."""

_AWAY = (OperationalError, StoreConnectionError, StoreTimeoutError)

_loop = ProcessLoop()


class WorkerApp(JobApp, Protocol):
    """What a worker needs of its app besides."""

    @property
    def dead_letters(self) -> DeadLetters: ...


@dataclass(frozen=True)
class Delivery:
    """One message at one job, once.

    Attributes:
        job: which is to run.
        request: Celery's facts of the message, a `celery.app.task.Context`.
    """

    job: Job[Any, Any, Any]
    request: Any

    @property
    def app(self) -> WorkerApp:
        """The job's, which here has more to it."""
        return cast(WorkerApp, self.job.app)

    @cached_property
    def envelope(self) -> Envelope:
        """Our headers."""
        return Envelope.read(vars(self.request))

    @property
    def attempt(self) -> int:
        """Which run this is, from 1."""
        return int(self.request.retries or 0) + 1

    @property
    def job_id(self) -> str:
        """The job's id."""
        return str(self.request.id)

    @cached_property
    def tracked(self) -> bool:
        """Whether the store has, or shall have, a record."""
        return is_tracked(self.envelope, self.request) and self.app.store is not None

    def context(self) -> JobContext:
        """What the job gets as its second parameter."""
        correlation_id = self.envelope.correlation_id or self.job_id
        return JobContext(self.job_id, self.attempt, correlation_id, self._report())

    def begin(self, progress: Progress | None = None) -> tuple[JobState, bool]:
        """Tell the record that this run is on. Returns its state and if the end is wanted."""
        if not self.tracked:
            return JobState.RUNNING, False
        return self.app.records.running(
            self.job_id, name=self.job.name, attempt=self.attempt, progress=progress
        )

    def _report(self) -> Any:
        limit_s = None if self.job.is_async else self.job.timeout_s
        ends_at = monotonic() + limit_s if limit_s else float("inf")

        def report(progress: Progress | None) -> bool:
            if progress:
                send_progress(self, progress)
            _, wanted = self.begin(progress)
            return wanted or monotonic() >= ends_at

        return report


def deliver(job: Job[Any, Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run `job` on what a message carried. Returns the result, or raises Celery's signal."""
    delivery = Delivery(job, job._get_request())
    outcome = outcome_of(delivery, args, kwargs)
    try:
        return settle(delivery, outcome)
    except _AWAY as error:
        # Nothing could be written, so nothing may be acknowledged.
        raise Reject(f"could not settle: {describe(error)}", requeue=True) from error


def outcome_of(delivery: Delivery, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Outcome:
    """Resolve, check, run."""
    contract, envelope = delivery.job.contract, delivery.envelope
    if (envelope.version or 0) > contract.contract_version:
        return too_new(envelope, contract)
    try:
        message = contract.received(only(contract, args, kwargs))
    except ContractError as error:
        return Quarantined(error)
    except Exception as error:  # a validator of the contract's own, text that is no Unicode
        return Quarantined(ContractError(contract.contract_name, [describe(error)]))
    try:
        state, wanted = delivery.begin()
    except _AWAY as error:
        return Returned(f"the state store does not answer ({error})", counted=False)
    if wanted or state is JobState.CANCELLED:
        return Cancelled()
    return Dropped(state) if state.final else run(delivery, message)


def run(delivery: Delivery, message: Message) -> Outcome:
    """The job itself, and what its end means."""
    job, context = delivery.job, delivery.context()
    inside = current.set(context)
    try:
        return Done(job.encode_result(call(job, message, context)))
    except (Ignore, Reject, CeleryRetry) as signal:
        return Passed(signal)
    except (JobCancelled, asyncio.CancelledError) as error:
        return Cancelled() if delivery.begin()[1] else failure(delivery, _unasked(job, error))
    except Exception as error:
        return failure(delivery, error)
    finally:
        current.reset(inside)


def call(job: Job[Any, Any, Any], message: Message, context: JobContext) -> Any:
    """The function, on the process's event loop if it is async."""
    if not job.is_async:
        return job(message, context)
    return _loop.run(job(message, context), job.timeout_s, lambda: context.cancelled)


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
    repeats it instead of losing it.
    """
    match outcome:
        case Done(result):
            return result
        case Retried(error, delay_s):
            retry(delivery, error, delay_s)
        case Returned(why, counted):
            give_back(delivery, why, counted)
        case Dead(error, reason):
            bury(delivery, Kind.DEAD, reason, error)
            raise portable(error)
        case Quarantined(error, reason):
            bury(delivery, Kind.QUARANTINE, reason, error)
            raise error
        case Cancelled():
            announce_cancelled(delivery)
            raise Ignore("cancelled")
        case Dropped(state):
            raise Ignore(f"a copy of a job that has {state.value}")
        case Passed(signal):
            if isinstance(signal, Reject) and not signal.requeue:
                bury(delivery, Kind.DEAD, Reason.REJECTED, signal)
            raise signal


def retry(delivery: Delivery, error: Exception, delay_s: float) -> NoReturn:
    """Send the message again for its next run."""
    again(delivery, replace(delivery.envelope, deliveries=0), delay_s, attempt=delivery.attempt + 1)
    raise CeleryRetry(exc=portable(error), when=delay_s)


def give_back(delivery: Delivery, why: str, counted: bool) -> NoReturn:
    """Send the message again for the same run."""
    envelope = delivery.envelope
    returned = replace(envelope, returns=envelope.returns + counted)
    again(delivery, returned, RETURN_AFTER_S, attempt=delivery.attempt)
    raise CeleryRetry(message=why, when=RETURN_AFTER_S)


def again(delivery: Delivery, envelope: Envelope, delay_s: float, attempt: int) -> None:
    """Publish a copy of the message, as it came but for what is counted."""
    request = delivery.request
    args = [Checked(arg) if isinstance(arg, dict) else arg for arg in request.args or ()]
    delivery.job.signature_from_request(
        request,
        args,
        request.kwargs,
        countdown=delay_s or None,
        retries=attempt - 1,
        headers={**(request.headers or {}), **envelope.headers()},
        argsrepr=request.get("argsrepr"),
        kwargsrepr=request.get("kwargsrepr"),
    ).apply_async()


def bury(delivery: Delivery, kind: Kind, reason: Reason, error: BaseException) -> None:
    """Keep the message with what ended it."""
    request, envelope = delivery.request, delivery.envelope
    embedded = {
        "callbacks": request.callbacks,
        "errbacks": request.errbacks,
        "chain": request.chain,
        "chord": request.chord,
    }
    delivery.app.dead_letters.add(
        DeadLetter(
            id=f"{delivery.job_id}.{delivery.attempt}",
            kind=kind,
            reason=reason,
            error=describe(error),
            traceback=traceback_of(error),
            queue=(request.delivery_info or {}).get("routing_key") or delivery.job.work_queue.name,
            job=delivery.job.name,
            job_id=delivery.job_id,
            attempts=delivery.attempt if kind is Kind.DEAD else delivery.attempt - 1,
            produced_at=envelope.produced_at,
            shown=request.get("argsrepr") or "",
            content_type="application/json",
            content_encoding="utf-8",
            headers={**(request.headers or {}), **envelope.headers()},
            properties={"correlation_id": request.correlation_id, "reply_to": request.reply_to},
            body=dumps([request.args, request.kwargs, embedded]).encode(),
        )
    )


def announce_cancelled(delivery: Delivery) -> None:
    """To the record and to Flower."""
    job, request = delivery.job, delivery.request
    job.backend.mark_as_revoked(
        delivery.job_id, "cancelled", request=request, store_result=not request.ignore_result
    )
    job.send_event("task-revoked", terminated=False, signum=None, expired=False)


def send_progress(delivery: Delivery, progress: Progress) -> None:
    """To Flower: Celery's event state takes any ``task-…`` event as a state of that name."""
    percent = progress.percent
    done = f"{progress.done:g}" if percent is None else f"{percent:.0f} %"
    delivery.job.send_event("task-progress", result=f"{done} {progress.note}".strip())


def only(contract: type[Message], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
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

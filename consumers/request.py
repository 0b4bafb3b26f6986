"""What ends a delivery from outside: Celery's request in the worker's main process.

The process that ran the job is gone (killed, crashed, over its time limit) and cannot settle; here
the same exits are taken for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial
from time import sleep
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from celery.app.task import Context
from celery.exceptions import TimeLimitExceeded
from celery.worker import request, state
from kombu.asynchronous import get_event_loop

from umbel.consumers.callbacks import tell_dropped
from umbel.consumers.deadletters import Kind, Reason, describe
from umbel.consumers.delivery import Delivery, again, bury, failure
from umbel.consumers.outcomes import Dead, Retried
from umbel.jobs.job import Job
from umbel.jobs.outages import AWAY, WRITE_AGAIN_S, held, tell_waiting
from umbel.jobs.records import JobState
from umbel.jobs.wire import Envelope
from umbel.routing.valkey import Holding

_CELERYS = {*vars(Context), "lang", "task", "argsrepr", "kwargsrepr", "compression"}
"""The headers that are not `Context.headers`; Celery would find them out for every message."""


class Held(request.Request):
    """One message in the hands of this worker: of a job, or of any of Celery's tasks."""

    lost = False
    _begun = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        facts = self._request_dict
        own = {name: value for name, value in facts.items() if name not in _CELERYS}
        facts.setdefault("headers", own or None)

    def read_here(self) -> None:
        """The job is run in this process: what was read of its message is not read again."""
        if not self._decoded:
            payload = self._message.payload
            self._body, self._content_type, self._content_encoding = payload, None, None

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """The run has begun."""
        self.begin()
        super().on_accepted(pid, time_accepted)

    def begin(self) -> None:
        """Say that the run begins, once."""
        begun = getattr(self._message, "begun", None)
        if begun and not self._begun:
            self._begun = True
            begun()

    def keep(self) -> None:
        """If a process of the pool has it, it runs: also when the connection is lost."""
        keep = getattr(self._message, "keep", None)
        if keep and self._apply_result is not None and not self.acknowledged:
            keep()

    def lose(self, pool: Any) -> None:
        """If others have the message by now, end the run and say nothing about it."""
        if held(self._context) is Holding.NO and not (self.lost or self.acknowledged):
            self.lost = True
            with suppress(NotImplementedError):  # threads end by themselves: context.cancelled
                self.cancel(pool, emit_retry=False)

    def insist(self, settle: Callable[[], None]) -> None:
        """Settle, and do so again while that cannot be written; a worker's loop is not held up.

        Args:
            settle: may be called again after it was interrupted anywhere.
        """
        while True:
            try:
                return settle()
            except AWAY as error:
                tell_waiting(self.id, error)
                loop: Any = get_event_loop()
                if loop is not None:
                    loop.call_later(WRITE_AGAIN_S, self.insist, settle)
                    return None
                sleep(WRITE_AGAIN_S)  # no worker, but a loop that pulls: it can

    def _announce_revoked(self, reason: str, *args: Any) -> None:
        announce = super()._announce_revoked

        def settle() -> None:
            self._tell_dropped(reason)
            announce(reason, *args)

        self.insist(settle)
        self._already_revoked = True

    def _tell_dropped(self, why: str) -> None:
        """A task of Celery's has nobody to tell."""

    def _announce_cancelled(self, *args: Any, **options: Any) -> None:
        self.insist(partial(super()._announce_cancelled, *args, **options))
        self._already_cancelled = True

    def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> None:
        """A run that we ended did not fail."""
        if self.lost:
            state.task_ready(self)
        else:
            super().on_failure(exc_info, *args, **options)


class Request(Held):
    """One message of a job."""

    _over_time_settled = False

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Prefork has killed the child that ran too long; `on_failure` may have come first."""
        if soft or state.should_terminate:
            super().on_timeout(soft, timeout)
        else:
            self._over_time(timeout, partial(super().on_timeout, soft, timeout))

    def _over_time(self, limit_s: float, finish: Callable[[], None]) -> None:
        """Settle it once; `finish` is what Celery does for a failure."""
        if not self._over_time_settled:
            self._over_time_settled = True
            self.insist(partial(self._settle_over_time, limit_s, finish))

    def _settle_over_time(self, limit_s: float, finish: Callable[[], None]) -> None:
        """By the job's policy."""
        # The limit is the job's, or one that the sender or Celery's settings gave.
        limit_s = self._job.timeout_s or limit_s
        error = TimeoutError(f"ran longer than timeout_s={limit_s:g} and was killed")
        match failure(self._delivery, error):
            case Retried(delay_s=delay_s):
                envelope = self._delivery.envelope._replace(deliveries=0)
                self._retry(envelope, delay_s, self._delivery.attempt + 1, describe(error))
            case Dead():
                bury(self._delivery, Kind.DEAD, Reason.TIMED_OUT, error)
                if self._delivery.tracked:  # before Celery does, whose text says less
                    self._app.records.ended(self.id, JobState.FAILED, describe(error))
                finish()

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> None:
        """The child died, or the job raised; the latter has settled itself already."""
        if self.lost:
            super().on_failure(exc_info)
            return
        error = _error_of(exc_info)
        fail = partial(super().on_failure, exc_info, send_failed_event, return_ok)
        stopped = self._already_cancelled or self._already_revoked or state.should_terminate
        if isinstance(error, TimeLimitExceeded) and not state.should_terminate:
            self._over_time(error.args[0], fail)
        elif isinstance(error, WorkerLostError | SystemExit | KeyboardInterrupt) and not stopped:
            self.insist(partial(self._settle_crash, error, fail))
        else:
            self.insist(fail)

    def _tell_dropped(self, why: str) -> None:
        tell_dropped(self._delivery, why)

    def _settle_crash(self, error: BaseException, finish: Callable[[], None]) -> None:
        """By the number of runs without an outcome."""
        envelope = self._delivery.envelope
        counted = envelope._replace(deliveries=envelope.deliveries + 1)
        if counted.deliveries < self._delivery.max_deliveries:
            why = f"{describe(error)} (run {counted.deliveries} without an outcome)"
            self._retry(counted, 0, self._delivery.attempt, why)
        else:
            bury(self._delivery, Kind.DEAD, Reason.CRASHED, error)
            finish()

    def _retry(self, envelope: Envelope, delay_s: float, attempt: int, error: str) -> None:
        """Send the copy that is run next; with that, this one is done with."""
        state.task_ready(self)
        if self._delivery.tracked:
            self._app.records.retrying(self.id, error)
        again(self._delivery, envelope, delay_s, attempt)
        self.acknowledge()
        self.send_event("task-retried", exception=error, traceback="")

    @property
    def _job(self) -> Job[Any, Any, Any]:
        job: Job[Any, Any, Any] = self._task
        return job

    @property
    def _delivery(self) -> Delivery:
        return Delivery.of(self._job, self._context)


def _error_of(exc_info: Any) -> BaseException:
    error: BaseException = exc_info.exception
    return error.exc if isinstance(error, ExceptionWithTraceback) else error

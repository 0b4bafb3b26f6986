"""What ends a delivery from outside: Celery's request in the worker's main process.

The process that ran the job is gone (killed, crashed, over its time limit) and cannot settle; here
the same exits are taken for it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

from billiard.einfo import ExceptionWithTraceback
from billiard.exceptions import WorkerLostError
from celery.exceptions import TimeLimitExceeded
from celery.worker import request, state

from umbel.consumers.deadletters import Kind, Reason, describe
from umbel.consumers.delivery import Delivery, again, bury, failure
from umbel.consumers.outcomes import Dead, Retried
from umbel.jobs.job import Job
from umbel.jobs.records import JobState


class Request(request.Request):
    """One message in the hands of this worker."""

    _over_time_settled = False

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Prefork has killed the child that ran too long; `on_failure` may have come first."""
        if soft or state.should_terminate:
            super().on_timeout(soft, timeout)
        elif not self._over_time_settled:
            self._over_time(timeout, partial(super().on_timeout, soft, timeout))

    def _over_time(self, limit_s: float, finish: Callable[[], None]) -> None:
        """Decide by the job's policy; `finish` is what Celery does for a failure."""
        self._over_time_settled = True
        # The limit is the job's, or one that the sender or Celery's settings gave.
        limit_s = self._job.timeout_s or limit_s
        error = TimeoutError(f"ran longer than timeout_s={limit_s:g} and was killed")
        match failure(self._delivery, error):
            case Retried(delay_s=delay_s):
                envelope = replace(self._delivery.envelope, deliveries=0)
                again(self._delivery, envelope, delay_s, attempt=self._delivery.attempt + 1)
                self._retried(describe(error))
            case Dead():
                bury(self._delivery, Kind.DEAD, Reason.TIMED_OUT, error)
                if self._delivery.tracked:  # before Celery does, whose text says less
                    self._app.records.ended(self.id, JobState.FAILED, describe(error))
                finish()

    def on_failure(
        self, exc_info: Any, send_failed_event: bool = True, return_ok: bool = False
    ) -> None:
        """The child died, or the job raised; the latter has settled itself already."""
        error = _error_of(exc_info)
        fail = partial(super().on_failure, exc_info, send_failed_event, return_ok)
        if isinstance(error, TimeLimitExceeded) and not state.should_terminate:
            if not self._over_time_settled:
                self._over_time(error.args[0], fail)
            return
        stopped_by_us = self._already_cancelled or self._already_revoked
        if isinstance(error, WorkerLostError | SystemExit | KeyboardInterrupt) and not (
            stopped_by_us or state.should_terminate
        ):
            envelope = self._delivery.envelope
            counted = replace(envelope, deliveries=envelope.deliveries + 1)
            if counted.deliveries < self._max_deliveries:
                again(self._delivery, counted, 0, attempt=self._delivery.attempt)
                self._retried(f"{describe(error)} (run {counted.deliveries} without an outcome)")
                return
            bury(self._delivery, Kind.DEAD, Reason.CRASHED, error)
        fail()

    def _retried(self, error: str) -> None:
        """The copy is sent: this one is done with."""
        state.task_ready(self)
        if self._delivery.tracked:
            self._app.records.retrying(self.id, error)
        self.acknowledge()
        self.send_event("task-retried", exception=error, traceback="")

    @property
    def _max_deliveries(self) -> int:
        limit: int = self._job.max_deliveries or self._app.settings.max_deliveries
        return limit

    @property
    def _job(self) -> Job[Any, Any, Any]:
        job: Job[Any, Any, Any] = self._task
        return job

    @property
    def _delivery(self) -> Delivery:
        return Delivery(self._job, self._context)


def _error_of(exc_info: Any) -> BaseException:
    error: BaseException = exc_info.exception
    return error.exc if isinstance(error, ExceptionWithTraceback) else error

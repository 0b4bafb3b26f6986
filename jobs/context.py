"""What a job may ask for as its second parameter."""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from time import monotonic

from umbel.config.errors import JobCancelled
from umbel.jobs.records import Progress

_EVERY_S = 0.2

Report = Callable[[Progress | None], bool]
"""Takes what is new, if anything; returns whether the job is to be cancelled."""


class JobContext:
    """The run that a job is in.

    Called inline, as ``resize(message)``, a job gets one that belongs to no message: nothing is
    reported and nothing cancels it.

    Attributes:
        job_id: the id that `send` returned; empty inline.
        attempt: which run this is, from 1.
        correlation_id: joins all that one request set off; empty inline.
        saga: name and id of the saga that this is a step of, ``order/17``; empty otherwise.
    """

    def __init__(
        self,
        job_id: str = "",
        attempt: int = 1,
        correlation_id: str = "",
        report: Report | None = None,
        saga: str = "",
    ) -> None:
        self.job_id = job_id
        self.attempt = attempt
        self.correlation_id = correlation_id
        self.saga = saga
        self._report = report
        # Apart, or a job that often looks for the end would never tell how far it is.
        self._told_at = self._asked_at = float("-inf")
        self._cancelled = False

    def progress(self, done: float, total: float | None = None, note: str = "") -> None:
        """Tell how far the job is; cheap to call often, since few of the calls are passed on.

        Args:
            done: units done, 0 or more, in whatever unit the job counts.
            total: units in all, more than 0, if known; reaching it is always passed on.
            note: what the job is at, for people.
        """
        if done == total or monotonic() - self._told_at >= _EVERY_S:
            self._told_at = monotonic()
            self._exchange(Progress(done=done, total=total, note=note))

    @property
    def cancelled(self) -> bool:
        """Whether somebody asked for the end: clean up and raise `JobCancelled`."""
        if not self._cancelled and monotonic() - self._asked_at >= _EVERY_S:
            self._exchange(None)
        return self._cancelled

    def raise_if_cancelled(self) -> None:
        """Raise `JobCancelled` if somebody asked for the end."""
        if self.cancelled:
            raise JobCancelled(job_id=self.job_id)

    def _exchange(self, news: Progress | None) -> None:
        self._asked_at = monotonic()
        if self._report is not None:
            self._cancelled = self._report(news)


current: ContextVar[JobContext | None] = ContextVar("umbel_current_job", default=None)
"""The run that this code is in: what it sends was caused by it."""

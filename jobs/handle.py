"""What a sender holds of a job that it sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from umbel.config.errors import JobCancelled, JobFailed, ResultTimeout
from umbel.jobs.records import JobState, Progress, Record, Records

R = TypeVar("R")


@dataclass(frozen=True)
class Receipt:
    """Of a message that the broker has taken: fire and forget.

    Attributes:
        id: the job's id, as Flower and the logs show it.
        name: the job's name.
    """

    id: str
    name: str


class JobHandle(Generic[R]):
    """A tracked job: where it is, how far, and its typed result.

    Each method asks the store; none keeps anything, so a handle may be found again anywhere by
    ``app.handle(id)``. The record expires ``result_ttl_s`` after the job has ended.

    Attributes:
        id: the job's id.
    """

    def __init__(self, job_id: str, records: Records, decode: Callable[[Any], R]) -> None:
        self.id = job_id
        self._records = records
        self._decode = decode

    def __repr__(self) -> str:
        return f"<JobHandle {self.id}>"

    def record(self) -> Record:
        """All that is known of the job now.

        Raises:
            UnknownJob: its record has expired.
        """
        return self._records.read(self.id)

    async def arecord(self) -> Record:
        """The same, without blocking the event loop."""
        return await self._records.aread(self.id)

    def state(self) -> JobState:
        """Where the job is."""
        return self.record().state

    def progress(self) -> Progress | None:
        """What the job last reported, if anything."""
        return self.record().progress

    def cancel(self) -> JobState:
        """Ask for the end: a job that waits never runs, one that runs is told.

        Returns:
            The state afterwards: ``cancelled``, ``running`` until the job notices, or the end
            that came first.
        """
        return self._records.cancel(self.id)

    def watch(self, timeout_s: float | None = None) -> Iterator[Record]:
        """The record now and at each change, up to the job's end or until the time is over."""
        return self._records.watch(self.id, timeout_s)

    def awatch(self, timeout_s: float | None = None) -> AsyncIterator[Record]:
        """The same, for ``async for``."""
        return self._records.awatch(self.id, timeout_s)

    def result(self, timeout_s: float | None = None) -> R:
        """The job's result, once it has ended.

        Args:
            timeout_s: longest time to wait, in seconds; None waits for ever.

        Raises:
            JobFailed: the job ended without a result (`JobCancelled` when that was asked for).
            ResultTimeout: it has not ended yet; it goes on.
            UnknownJob: its record has expired.
        """
        *_, last = self.watch(timeout_s)
        return self._outcome(last, timeout_s)

    async def aresult(self, timeout_s: float | None = None) -> R:
        """The same, without blocking the event loop."""
        *_, last = [record async for record in self.awatch(timeout_s)]
        return self._outcome(last, timeout_s)

    def _outcome(self, record: Record, timeout_s: float | None) -> R:
        if record.state is JobState.SUCCEEDED:
            return self._decode(record.result)
        if record.state is JobState.CANCELLED:
            raise JobCancelled(record.error or "cancelled", self.id)
        if record.state.final:
            raise JobFailed(record.error or record.state.value, self.id, record.traceback)
        raise ResultTimeout(
            f"job {self.id} is {record.state.value} after {timeout_s} s; it goes on, "
            "ask again with app.handle(id)"
        )

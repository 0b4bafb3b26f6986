"""What a sender holds of a saga that it started."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Generic, TypeVar

from umbel.config.errors import ResultTimeout, SagaFailed, UnknownJob
from umbel.jobs.contracts import Message
from umbel.jobs.records import Records
from umbel.jobs.saga_records import SagaRecords
from umbel.jobs.saga_state import SagaRecord, SagaState, SagaStep
from umbel.jobs.saga_steps import SagaRun

M = TypeVar("M", bound=Message)


class SagaHandle(Generic[M]):
    """A saga: where it is, each of its steps, and how it ended.

    Each method asks the store; none keeps anything, so a handle may be found again anywhere by
    ``saga.handle(id)``. The record expires ``result_ttl_s`` after the saga has ended.

    Args:
        key: the saga's name and id, ``order/17``.
        records: what is known of sagas.
        jobs: what is known of jobs.
        run: the saga as its receivers see it.
        go_on: sends the job that it waits for.

    Attributes:
        id: which of its name.
    """

    def __init__(
        self,
        key: str,
        records: SagaRecords,
        jobs: Records,
        run: Callable[[SagaRecord], SagaRun[M]],
        go_on: Callable[[SagaRecord], None],
    ) -> None:
        self.id = key.partition("/")[2]
        self._key = key
        self._records = records
        self._jobs = jobs
        self._run = run
        self._go_on = go_on

    def __repr__(self) -> str:
        return f"<SagaHandle {self._key}>"

    def record(self) -> SagaRecord:
        """All that is known of the saga now; its JSON is ``record().model_dump_json()``.

        Raises:
            UnknownJob: there is none, or its record has expired.
        """
        record = self._records.read(self._key)
        if step := record.awaited:
            with suppress(UnknownJob):
                job = self._jobs.read(step.awaited_id)
                step.ran(job.attempt)
                step.error = job.error or step.error
        return record

    async def arecord(self) -> SagaRecord:
        """The same, without blocking the event loop."""
        return await asyncio.to_thread(self.record)

    def state(self) -> SagaState:
        """Where the saga is."""
        return self._records.read(self._key).state

    def steps(self) -> list[SagaStep]:
        """Its steps in their order: where each is, its jobs' ids, its runs, its last error."""
        return self.record().steps

    def cancel(self) -> SagaState:
        """Ask for the end: when the step that runs has ended, it and those before are undone.

        That step is asked for its end too: if it still waits it never runs. A saga that has ended
        or is undone already stays as it is.

        Returns:
            The state afterwards: ``running`` as long as the step's end is awaited.
        """
        record = self._records.move(self._key, SagaRecord.cancel)
        if record.state is SagaState.RUNNING and record.awaited:
            with suppress(UnknownJob):
                self._jobs.cancel(record.awaited.job_id)
        return record.state

    async def acancel(self) -> SagaState:
        """The same, without blocking the event loop."""
        return await asyncio.to_thread(self.cancel)

    def resume(self) -> SagaState:
        """Send the compensation at which the saga is stuck once more, as a replay of its dead
        letter does; nothing, if it is not stuck.

        Raises:
            BrokerUnavailable: no answer in time.
        """
        record = self._records.move(self._key, SagaRecord.resume)
        if record.state is SagaState.STUCK and record.awaited:
            self._jobs.forget(record.awaited.awaited_id)
            self._go_on(record)
        return self.state()

    def result(self, timeout_s: float | None = None) -> SagaRun[M]:
        """The saga, once all is done: ``handle.result(10).result(charge)`` is what a step returned.

        Args:
            timeout_s: longest time to wait, in seconds; None waits for ever.

        Raises:
            SagaFailed: it is undone, or it is stuck in undoing.
            ResultTimeout: it has not ended yet; it goes on.
            UnknownJob: its record has expired.
        """
        *_, last = self._records.watch(self._key, timeout_s)
        return self._outcome(last, timeout_s)

    async def aresult(self, timeout_s: float | None = None) -> SagaRun[M]:
        """The same, without blocking the event loop."""
        *_, last = [record async for record in self._records.awatch(self._key, timeout_s)]
        return self._outcome(last, timeout_s)

    def _outcome(self, record: SagaRecord, timeout_s: float | None) -> SagaRun[M]:
        match record.state:
            case SagaState.SUCCEEDED:
                return self._run(record)
            case SagaState.UNDONE | SagaState.STUCK:
                raise SagaFailed(record.why, self._key, record.state, record.failed_step)
            case state:
                raise ResultTimeout(f"saga {self._key} is {state} after {timeout_s} s; it goes on")

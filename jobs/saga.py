"""A saga: several jobs that all succeed, or whose effects are undone.

No process of its own drives it. Each step is sent with callbacks to two jobs of the saga's
(`umbel.consumers.sagas`), which move the record and send what is next, all before they are settled:
wherever a process dies, the message that it held comes again, changes nothing that is recorded, and
sends what has not been sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any, Generic, Protocol, TypeVar
from uuid import NAMESPACE_OID, uuid4, uuid5

from pydantic import ValidationError

from umbel.config.errors import ContractError, SagaFailed, UmbelError
from umbel.jobs.callbacks import Completed, Failed, callbacks
from umbel.jobs.context import current
from umbel.jobs.contracts import WIRE_NAME, Message, contract_error
from umbel.jobs.job import Job, JobApp
from umbel.jobs.saga_handle import SagaHandle
from umbel.jobs.saga_records import SagaRecords
from umbel.jobs.saga_state import SagaRecord, SagaState, SagaStep, StepState
from umbel.jobs.saga_steps import SagaRun, Step, checked_contract, checked_steps
from umbel.jobs.wire import CORRELATION_ID, SAGA

M = TypeVar("M", bound=Message)

LONGEST_ID = 200
"""Of a saga, in characters."""


class SagaApp(JobApp, Protocol):
    """What a saga needs of its app besides."""

    jobs: dict[str, Job[Any, Any, Any]]

    @property
    def saga_records(self) -> SagaRecords: ...


class UnknownStep(UmbelError):
    """A saga waits for a step that this code does not declare; other code has started it."""


class Saga(Generic[M]):
    """Several jobs that all succeed, or whose effects are undone; `app.saga` makes one.

    Attributes:
        name: the saga's name.
        steps: by their jobs' names, in their order.
        contract: the class of the message that it is started with.
        told: the jobs that are told how a step has ended: of success, and of failure.
    """

    told: tuple[Job[Completed[Any], None, Any], Job[Failed, None, Any]]

    def __init__(
        self, app: SagaApp, name: str, steps: Sequence[Step[M]], message: type[M] | None
    ) -> None:
        if not WIRE_NAME.fullmatch(name):
            raise ContractError(name, ["expected lower case words joined by dots, 'shop.order'"])
        self._app = app
        self.name = name
        self.steps = checked_steps(name, steps, app.jobs)
        self.contract = checked_contract(name, steps, message)

    def start(self, message: M, *, saga_id: str | None = None) -> SagaHandle[M]:
        """Begin: returns when the first step is in its queue.

        Args:
            message: checked against the contract; each step can see it.
            saga_id: name it yourself, and starting it again (after an uncertain failure, or by two
                callers) is harmless: there is one saga of a name and an id until its record
                expires, ``result_ttl_s`` after its end.

        Raises:
            ContractError: the message does not fit, or is not the one that this id was started
                with; nothing was sent.
            BrokerUnavailable: no answer in time: start it again with the same ``saga_id``.
            StoreRequired: there is no state store.
            ValueError: the id is empty or too long.
        """
        saga_id = str(uuid4()) if saga_id is None else saga_id
        if not 1 <= len(saga_id) <= LONGEST_ID:
            raise ValueError(f"saga_id={saga_id!r}: expected 1 to {LONGEST_ID} characters")
        new = self._first(self.contract.checked(message), saga_id)
        self._asked(new, new.steps[0])  # what its function raises is the caller's
        record = self._app.saga_records.begin(new)
        if record.version == new.version and record.message != new.message:
            problem = f"saga {self.name} {saga_id} was started with another message"
            raise ContractError(self.contract.contract_name, [problem])
        self.go_on(record)
        return self.handle(saga_id)

    async def astart(self, message: M, *, saga_id: str | None = None) -> SagaHandle[M]:
        """`start` without blocking the event loop."""
        return await asyncio.to_thread(self.start, message, saga_id=saga_id)

    def handle(self, saga_id: str) -> SagaHandle[M]:
        """The handle of a saga that was started, in any process of the app."""
        app, key = self._app, f"{self.name}/{saga_id}"
        return SagaHandle(key, app.saga_records, app.records, self._run, self.go_on)

    def go_on(self, record: SagaRecord) -> None:
        """Send the job that a saga waits for, unless it has been sent.

        Raises:
            SagaFailed: it is stuck, since the message of a compensation cannot be made.
            BrokerUnavailable: no answer in time.
            UnknownStep: this code lacks the step.
        """
        while (step := record.awaited) and not step.sent:
            record = self._sent(record, step)

    def _sent(self, record: SagaRecord, step: SagaStep) -> SagaRecord:
        """The saga after the job that it waits for was sent, or after its message was not made."""
        key, job_id, move = f"{self.name}/{record.id}", step.awaited_id, self._app.saga_records.move
        try:
            job, message = self._asked(record, step)
        except UnknownStep:
            raise
        except Exception as error:  # of the user's function, or what it made does not fit
            why = f"the message cannot be made: {type(error).__name__}: {error}"
            record = move(key, lambda now: now.tell_failed(job_id, why, began=False))
            if record.state is SagaState.STUCK:
                raise SagaFailed(why, key, record.state, record.failed_step) from error
            return record
        headers = {CORRELATION_ID: record.correlation_id, SAGA: key, **callbacks(job, *self.told)}
        self._app.sender.send(job, message, {"task_id": job_id, "headers": headers})
        return move(key, lambda now: now.tell_sent(job_id))

    def _run(self, record: SagaRecord) -> SagaRun[M]:
        return SagaRun(record, self.contract)

    def _first(self, message: M, saga_id: str) -> SagaRecord:
        """The record of a saga that begins."""
        running = current.get()
        inherited = running.correlation_id if running else ""
        id_of = partial(step_id, self.name, saga_id)
        steps = [
            SagaStep(
                name=name, job_id=id_of(name), undo_id=id_of(name, "undo") if step.undo else None
            )
            for name, step in self.steps.items()
        ]
        steps[0].state = StepState.RUNNING
        return SagaRecord(
            name=self.name,
            id=saga_id,
            steps=steps,
            correlation_id=inherited or saga_id,
            version=self.contract.contract_version,
            message=message.payload(),
        )

    def _asked(self, record: SagaRecord, step: SagaStep) -> tuple[Job[Any, Any, Any], Message]:
        """The job that is waited for, and its message."""
        declared = self.steps.get(step.name)
        job = (declared.undo if step.backward else declared.job) if declared else None
        if declared is None or job is None:
            way = "undo of step" if step.backward else "step"
            raise UnknownStep(
                f"saga {self.name} {record.id} waits for the {way} {step.name!r}, which this code "
                "does not declare: keep it until the sagas that were started with it have ended"
            )
        make = (step.backward and declared.undo_message) or declared.message
        run = self._run(record)
        try:
            return job, job.contract.checked(make(run) if make else run.message)
        except ValidationError as error:
            raise contract_error(job.contract, error) from error


def step_id(*parts: str) -> str:
    """The id of a step's job: the same whenever and by whomever it is sent.

    Args:
        parts: the saga's name and id, the step's name, and ``undo`` for its compensation.
    """
    return str(uuid5(NAMESPACE_OID, "/".join(parts)))

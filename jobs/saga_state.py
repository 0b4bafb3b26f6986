"""What is known of a saga, and the moves that it can make.

A move belongs to the job that the saga waits for; told by any other (a copy of a callback, a job
that the saga has given up) it changes nothing. So each may be told any number of times.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class SagaState(StrEnum):
    """Where a saga is."""

    RUNNING = "running"
    SUCCEEDED = "succeeded"
    UNDOING = "undoing"
    UNDONE = "undone"
    STUCK = "stuck"

    @property
    def rests(self) -> bool:
        """Whether it has ended, or goes on only when somebody sees to it."""
        return self not in {SagaState.RUNNING, SagaState.UNDOING}

    @property
    def final(self) -> bool:
        """Whether it has ended."""
        return self in {SagaState.SUCCEEDED, SagaState.UNDONE}


class StepState(StrEnum):
    """Where a step is: done, given up, or on its way there or back."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNDOING = "undoing"
    UNDONE = "undone"
    STUCK = "stuck"


_AWAITED = {StepState.RUNNING, StepState.UNDOING, StepState.STUCK}
_BACKWARD = {StepState.UNDOING, StepState.STUCK}


class SagaStep(BaseModel):
    """A step of one saga.

    Attributes:
        name: its job's name.
        state: where it is.
        job_id: its job's id, known from the start.
        undo_id: likewise of the job that undoes it; None where nothing does.
        attempts: runs that its job has begun.
        undo_attempts: likewise of the job that undoes it.
        error: what went wrong last, in one line.
        returned: whether it has succeeded.
        result: what it returned then, as JSON types.
        sent: whether the job that is waited for has been sent.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")

    name: str
    state: StepState = StepState.WAITING
    job_id: str
    undo_id: str | None = None
    attempts: int = 0
    undo_attempts: int = 0
    error: str | None = None
    returned: bool = False
    result: Any = Field(default=None, repr=False)
    sent: bool = Field(default=False, repr=False)

    @property
    def backward(self) -> bool:
        """Whether it is on its way back."""
        return self.state in _BACKWARD

    @property
    def awaited_id(self) -> str:
        """The id of the job that is waited for."""
        return self.undo_id or "" if self.backward else self.job_id

    def ran(self, attempts: int) -> None:
        """So often did the job run that is waited for."""
        if self.backward:
            self.undo_attempts = attempts
        else:
            self.attempts = attempts


class SagaRecord(BaseModel):
    """A saga at one moment.

    Attributes:
        name: the saga's name.
        id: which of that name.
        state: where it is.
        steps: in their order, as they were declared when it was started.
        failed_step: the name of the step that failed; None too where somebody wanted it undone.
        error: why, in one line.
        cancel_requested: whether somebody wants it undone.
        correlation_id: joins all that one request set off.
        version: of the message's contract.
        message: what it was started with, as JSON types.
        created_at: when it was started, UTC.
        updated_at: when it last moved, UTC.
    """

    model_config = ConfigDict(ser_json_inf_nan="constants")

    name: str
    id: str
    state: SagaState = SagaState.RUNNING
    steps: list[SagaStep]
    failed_step: str | None = None
    error: str | None = None
    cancel_requested: bool = False
    correlation_id: str
    version: int
    message: dict[str, Any] = Field(repr=False)
    created_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    updated_at: datetime = Field(default_factory=lambda: datetime.now(UTC))

    @property
    def awaited(self) -> SagaStep | None:
        """The step whose job the saga waits for; None at its end."""
        return next((step for step in self.steps if step.state in _AWAITED), None)

    @property
    def why(self) -> str:
        """What went wrong, in one line; empty as long as nothing did."""
        stuck = self.awaited if self.state is SagaState.STUCK else None
        first = f"{self.failed_step}: {self.error}" if self.failed_step else self.error or ""
        return f"{first}; undoing {stuck.name}: {stuck.error}" if stuck else first

    def step(self, name: str) -> SagaStep:
        """The step of a name.

        Raises:
            LookupError: there is none.
        """
        for step in self.steps:
            if step.name == name:
                return step
        raise LookupError(f"saga {self.name} {self.id} has no step {name!r}")

    def undoes(self, job_id: str) -> bool:
        """Whether a job is one of its compensations: they may be replayed when they have failed."""
        return any(step.undo_id == job_id for step in self.steps)

    def tell_sent(self, job_id: str) -> bool:
        """The job that is waited for is in its queue. Returns whether that is news."""
        step = self._waits_for(job_id)
        if step is None:
            return False
        step.sent = True
        if step.state is StepState.STUCK:
            step.state, self.state = StepState.UNDOING, SagaState.UNDOING
        return True

    def tell_succeeded(self, job_id: str, result: Any, attempts: int) -> bool:
        """The job has succeeded: on to the next step, or back to the one before."""
        step = self._waits_for(job_id)
        if step is None:
            return False
        step.ran(attempts)
        if step.backward:
            step.state = StepState.UNDONE
            self._back()
            return True
        step.state, step.returned, step.result = StepState.SUCCEEDED, True, result
        if self.cancel_requested:
            self.error = "cancelled"
            self._back()
        else:
            self._on()
        return True

    def tell_failed(
        self, job_id: str, error: str, attempts: int = 0, *, began: bool = True
    ) -> bool:
        """The job has been given up: undo, with this step the first, since it may have been done.

        Args:
            job_id: whose end is told.
            error: what went wrong, in one line.
            attempts: runs that it had begun.
            began: whether it was ever sent.
        """
        step = self._waits_for(job_id)
        if step is None:
            return False
        step.ran(attempts)
        step.error = error
        if step.backward:
            step.state, self.state = StepState.STUCK, SagaState.STUCK
        else:
            step.state = StepState.FAILED if began else StepState.WAITING
            self.failed_step = None if self.cancel_requested else step.name
            self.error = error
            self._back()
        return True

    def cancel(self) -> bool:
        """Undo what is done once the step that runs has ended."""
        if self.cancel_requested or self.state is not SagaState.RUNNING:
            return False
        self.cancel_requested = True
        return True

    def resume(self) -> bool:
        """Send the compensation once more at which it is stuck."""
        if self.state is not SagaState.STUCK or self.awaited is None:
            return False
        self.awaited.sent = False
        return True

    def _waits_for(self, job_id: str) -> SagaStep | None:
        step = self.awaited
        return step if step and step.awaited_id == job_id else None

    def _on(self) -> None:
        for step in self.steps:
            if step.state is StepState.WAITING:
                step.state, step.sent = StepState.RUNNING, False
                return
        self.state = SagaState.SUCCEEDED

    def _back(self) -> None:
        self.state = SagaState.UNDOING
        for step in reversed(self.steps):
            if step.undo_id and step.state in {StepState.SUCCEEDED, StepState.FAILED}:
                step.state, step.sent = StepState.UNDOING, False
                return
        self.state = SagaState.UNDONE

"""What a saga is made of: steps, and what their functions see of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Generic, TypeVar, cast, get_type_hints, overload

from umbel.config.errors import ContractError
from umbel.jobs import versions
from umbel.jobs.contracts import Message, contract_of
from umbel.jobs.job import Job
from umbel.jobs.saga_state import SagaRecord

M = TypeVar("M", bound=Message)
J = TypeVar("J", bound=Message)
U = TypeVar("U", bound=Message)
R = TypeVar("R")


class SagaRun(Generic[M]):
    """One saga, as the functions of its steps and the receiver of its end see it.

    Args:
        record: the saga now.
        contract: today's class of its message.

    Attributes:
        id: which saga of its name.
    """

    def __init__(self, record: SagaRecord, contract: type[M]) -> None:
        self.id = record.id
        self._record = record
        self._contract = contract

    @cached_property
    def message(self) -> M:
        """What it was started with."""
        record, contract = self._record, self._contract
        name = contract.contract_name
        return cast(M, versions.received(contract, record.message, name, record.version))

    def done(self, job: Job[Any, Any, Any]) -> bool:
        """Whether the job of a step has succeeded, so that there is a result.

        Raises:
            LookupError: it is no step.
        """
        return self._record.step(job.name).returned

    def result(self, job: Job[Any, R, Any]) -> R:
        """What the job of a step has returned.

        Raises:
            LookupError: it has not succeeded, or is no step.
        """
        if not self.done(job):
            raise LookupError(f"{job.name} has no result, it has not succeeded: ask done() before")
        return job.decode_result(self._record.step(job.name).result)

    def job_id(self, job: Job[Any, Any, Any]) -> str:
        """The ``context.job_id`` of a step's job, the same in each of its runs.

        Raises:
            LookupError: it is no step.
        """
        return self._record.step(job.name).job_id


Make = Callable[[SagaRun[M]], J]
"""Makes a job's message of what is known of the saga; only computes, for it is called again."""


class Step(Generic[M]):
    """A job, and the job that undoes what it did.

        Step(reserve, undo=release)
        Step(charge, undo=refund, message=to_charge)

    Args:
        job: takes the saga's message, or what ``message=`` makes.
        undo: takes what the job took, or what ``undo_message=`` makes. It is sent too where the
            job itself was given up, for then nobody knows what it had done: it has to bear that
            there is nothing to undo.
        message: makes the job's message of the saga's and of what earlier steps have returned.
        undo_message: likewise for the undo.
    """

    @overload
    def __init__(self, job: Job[M, Any, Any], undo: Job[M, Any, Any] | None = None) -> None: ...
    @overload
    def __init__(
        self, job: Job[M, Any, Any], undo: Job[U, Any, Any], *, undo_message: Make[M, U]
    ) -> None: ...
    @overload
    def __init__(
        self,
        job: Job[J, Any, Any],
        undo: Job[J, Any, Any] | None = None,
        *,
        message: Make[M, J],
    ) -> None: ...
    @overload
    def __init__(
        self,
        job: Job[J, Any, Any],
        undo: Job[U, Any, Any],
        *,
        message: Make[M, J],
        undo_message: Make[M, U],
    ) -> None: ...
    def __init__(
        self,
        job: Job[Any, Any, Any],
        undo: Job[Any, Any, Any] | None = None,
        *,
        message: Make[M, Any] | None = None,
        undo_message: Make[M, Any] | None = None,
    ) -> None:
        self.job = job
        self.undo = undo
        self.message = message
        self.undo_message = undo_message


def checked_steps(
    saga: str, steps: Sequence[Step[Any]], jobs: Mapping[str, Job[Any, Any, Any]]
) -> dict[str, Step[Any]]:
    """The steps by their jobs' names.

    Args:
        saga: its name.
        steps: as they were declared.
        jobs: all of the app's, by name.

    Raises:
        ContractError: with a line for each that cannot be.
    """
    problems = [] if steps else ["has no steps: steps=[Step(job, undo=job), …]"]
    by_name: dict[str, Step[Any]] = {}
    for step in steps:
        if not isinstance(step, Step):
            problems.append(f"expected Step(job, undo=job), got {step!r}")
            continue
        foreign = [
            f"{job!r} is no job of this app"
            for job in (step.job, step.undo)
            if job is not None and jobs.get(getattr(job, "name", "")) is not job
        ]
        problems += foreign or _misfits(step)
        if not foreign and by_name.setdefault(step.job.name, step) is not step:
            problems.append(f"{step.job.name} is two of its steps; give one a job of its own")
    if problems:
        raise ContractError(saga, problems)
    return by_name


def checked_contract(saga: str, steps: Sequence[Step[Any]], message: type[M] | None) -> type[M]:
    """The class of the message that a saga is started with.

    Args:
        saga: its name.
        steps: checked.
        message: what was declared, if anything.

    Raises:
        ContractError: it is not said, or not by all the same.
    """
    taken = {step.job.contract: step.job.name for step in steps if step.message is None}
    if message is not None:
        contract_of(message)
        taken = {message: "message=", **taken}
    if not taken:
        raise ContractError(saga, ["every step has message=, so say what it starts with: message="])
    [contract, *others] = taken
    if others:
        said = ", ".join(f"{name} takes {one.__name__}" for one, name in taken.items())
        raise ContractError(saga, [f"which message starts it? {said}; the others need message="])
    return contract


def _misfits(step: Step[Any]) -> list[str]:
    problems = [_returns(step.message, step.job)]
    if step.undo is None:
        problems.append(step.undo_message and f"{step.job.name} has an undo_message= and no undo=")
    elif step.undo_message is not None:
        problems.append(_returns(step.undo_message, step.undo))
    elif step.undo.contract is not step.job.contract:
        problems.append(
            f"undo={step.undo.name} takes {step.undo.contract.__name__}, and {step.job.name} "
            f"{step.job.contract.__name__}: give the step an undo_message="
        )
    return [problem for problem in problems if problem]


def _returns(make: Make[Any, Any] | None, job: Job[Any, Any, Any]) -> str | None:
    """What is wrong with what a function says that it returns, if it says so."""
    try:
        made = get_type_hints(make).get("return", job.contract) if make else job.contract
    except (NameError, TypeError):  # names of a function's inside, something without annotations
        return None
    if made in {job.contract, Any}:
        return None
    return f"{getattr(make, '__name__', make)} makes {made}, and {job.name} takes {job.contract}"

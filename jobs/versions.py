"""Old messages carried forward, from the class they were written for to today's.

A version is read by the oldest class at or above it that is known, and goes on from there step by
step. A version without a class of its own is one that its successor reads as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

from pydantic import ValidationError

from umbel.config.errors import ContractError
from umbel.jobs.contracts import Message, contract_error, contract_of, names_of

Old = TypeVar("Old", bound=Message)
New = TypeVar("New", bound=Message)

# On the classes themselves, so that there is no registry that two apps in a process share.
_FORWARD, _BACK = "__umbel_forward__", "__umbel_back__"


@dataclass(frozen=True)
class Step:
    """From one class to a newer one.

    Attributes:
        old: the class that is read.
        new: the class that it becomes.
        function: makes one of the other.
    """

    old: type[Message]
    new: type[Message]
    function: Callable[[Any], Any]

    def __str__(self) -> str:
        """With both versions and the function, as errors name it."""
        return f"upcast {self.function.__qualname__} ({_tag(self.old)} to {_tag(self.new)})"

    def __call__(self, message: Message) -> Message:
        """The message as one of the newer class.

        Raises:
            ContractError: the function failed, or what it made does not fit.
        """
        try:
            return self.new.checked(self.function(message))
        except ValidationError as error:  # its text would show the input, which may be secret
            problems = contract_error(self.new, error).problems
        except ContractError as error:
            problems = error.problems
        except Exception as error:
            problems = (f"{type(error).__name__}: {error}",)
        raise ContractError(_name(self.new), [f"{self}: {problem}" for problem in problems])


def upcast(
    old: type[Old], *, to: type[New]
) -> Callable[[Callable[[Old], New]], Callable[[Old], New]]:
    """Declare how a message of an old version becomes one of a newer.

        @upcast(ResizeV1, to=Resize)
        def widths(old: ResizeV1) -> Resize:
            return Resize(source=old.source, widths=[old.width])

    Steps are chained: a message of version 1 goes through those to 2 and to 3. Versions only rise,
    so a chain has an end; each class has one way forward. The function stays callable.

    Args:
        old: has the same wire name, or one of the aliases, and a lower version.
        to: what the function returns.

    Raises:
        ContractError: the names differ, the version does not rise, or the step is there already.
    """

    def declare(function: Callable[[Old], New]) -> Callable[[Old], New]:
        step = Step(old, to, function)
        _check(step)
        setattr(old, _FORWARD, step)
        setattr(to, _BACK, (*_steps_to(to), step))
        return function

    return declare


def versions_of(contract: type[Message]) -> list[type[Message]]:
    """All classes whose messages become those of this one, the newest (itself) first."""
    found, steps = [contract], list(_steps_to(contract))
    while steps:
        old = steps.pop().old
        found.append(old)
        steps.extend(_steps_to(old))
    return sorted(found, key=lambda one: one.contract_version, reverse=True)


def checked_versions(contract: type[Message]) -> None:
    """Refuse a chain that does not hold.

    Raises:
        ContractError: a step leads nowhere (the next is missing), or an old name is no alias, so
            that its messages would not find here.
    """
    versions, names = versions_of(contract), names_of(contract)
    for old in versions:
        if _name(old) not in names:
            problem = f"{_tag(old)} becomes this one: say so by aliases=({_name(old)!r},)"
            raise ContractError(_name(contract), [problem])
    known = {contract_of(one) for one in versions}
    for step in _steps_beside(contract):
        if _name(step.old) in names and contract_of(step.old) not in known:
            problem = f"{step} leads no further: declare @upcast({step.new.__name__}, to=…)"
            raise ContractError(_name(contract), [problem])


def class_for(contract: type[Message], name: str | None, version: int | None) -> type[Message]:
    """The class that reads a message.

    Args:
        contract: what it is to become.
        name: of the contract that it was written for, as its producer said; None if it did not.
        version: likewise.
    """
    if version is None or (name, version) == (contract.contract_name, contract.contract_version):
        return contract
    readers = [
        one
        for one in versions_of(contract)
        if one.contract_version >= version and (name is None or name in names_of(one))
    ]
    return readers[-1] if readers else contract


def received(
    contract: type[Message], payload: Any, name: str | None, version: int | None
) -> Message:
    """The message after the consumer's check, as one of today's class.

    Args:
        contract: today's.
        payload: JSON types.
        name: of the contract that it was written for, as its producer said; None if it did not.
        version: likewise.

    Raises:
        ContractError: it does not fit the class that it was written for, or cannot be carried on.
    """
    reader = class_for(contract, name, version)
    message: Message = reader.received(payload)
    while reader is not contract:
        step: Step = vars(reader)[_FORWARD]
        message, reader = step(message), step.new
    return message


def _check(step: Step) -> None:
    name, version = contract_of(step.new)
    old_name, old_version = contract_of(step.old)
    if old_name not in names_of(step.new):
        problem = f"is another contract than {old_name}; after a renaming, aliases=({old_name!r},)"
    elif old_version >= version:
        problem = f"{step} goes the wrong way: a step leads to a higher version"
    elif there := [
        one for one in _steps_near(step) if contract_of(one.old) == (old_name, old_version)
    ]:
        problem = f"{step}: there is one from {_tag(step.old)} already, {there[0]}"
    else:
        return
    raise ContractError(name, [problem])


def _steps_to(contract: type[Message]) -> tuple[Step, ...]:
    steps: tuple[Step, ...] = vars(contract).get(_BACK, ())
    return steps


def _steps_near(step: Step) -> tuple[Step, ...]:
    forward = vars(step.old).get(_FORWARD)
    return (*_steps_to(step.new), *([forward] if forward else ()))


def _steps_beside(contract: type[Message]) -> Iterator[Step]:
    """From lower versions, declared in the same place; elsewhere may be another app's."""
    for one in _subclasses(Message):
        step: Step | None = vars(one).get(_FORWARD)
        if step is None or one.contract_version >= contract.contract_version:
            continue
        if _place(one) == _place(contract):
            yield step


def _subclasses(base: type[Message]) -> Iterator[type[Message]]:
    for one in base.__subclasses__():
        yield one
        yield from _subclasses(one)


def _place(contract: type[Message]) -> tuple[str, str]:
    return contract.__module__, contract.__qualname__.rpartition(".")[0]


def _name(contract: type[Message]) -> str:
    return contract.contract_name


def _tag(contract: type[Message]) -> str:
    return f"{contract.contract_name} {contract.contract_version}"

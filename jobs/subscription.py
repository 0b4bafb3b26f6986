"""A subscriber: a job that events set off, one of any number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any, ClassVar, Union, get_args, get_origin
from uuid import NAMESPACE_OID, uuid5

from umbel.config.errors import ContractError
from umbel.jobs.contracts import Event, Message, names_of
from umbel.jobs.job import Job
from umbel.routing.topics import checked_pattern


class Subscription(Job[Any, Any, Any]):
    """What one subscriber does with its events; each handling is a job of its own.

    Attributes:
        events: the classes that its function takes; `Event` stands for all that are known.
    """

    abstract = True
    section = "subscribers"
    events: ClassVar[tuple[type[Event], ...]] = ()

    def contract_for(self, name: str | None) -> type[Message]:
        """The class of an event.

        Raises:
            ContractError: it is none that this subscriber takes.
        """
        classes = [one for one in _with_subclasses(self.events) if "contract_name" in vars(one)]
        if known := [one for one in classes if name in names_of(one)]:
            return max(known, key=lambda one: one.contract_version)
        if self.contract is not Event:
            return self.contract
        why = f"subscriber {self.name} knows no class of this event: import it where it is declared"
        raise ContractError(name or "event", [why])

    def handling_id(self, event_id: str) -> str:
        """The id of this subscriber's handling of an event: always the same, for a broadcast in
        this process."""
        of = (event_id, self.name, self.work_queue.instance)
        return str(uuid5(NAMESPACE_OID, "/".join(part for part in of if part)))


def consumed(annotation: Any) -> dict[str, Any]:
    """What the annotation of a handler says: the classes that it takes.

    Raises:
        TypeError: it takes something else than events.
    """
    taken = get_args(annotation) if get_origin(annotation) in {Union, UnionType} else (annotation,)
    if all(isinstance(one, type) and issubclass(one, Event) for one in taken):
        return {"events": taken, "contract": taken[0] if len(taken) == 1 else Event}
    raise TypeError(f"is annotated {annotation!r}, which is no Event class and no union of them")


def patterns_of(what: Sequence[type[Event] | str]) -> tuple[str, ...]:
    """The patterns of the names of what is subscribed to.

    Raises:
        ValueError: there is none, or one of another form.
        TypeError: a class without a contract.
    """
    if not what:
        raise ValueError(
            "subscribe to what? app.subscribe(ImageResized) or app.subscribe('image.*')"
        )
    for one in what:
        if not isinstance(one, str) and "contract_name" not in vars(one):
            raise TypeError(f"{one.__name__} has no contract; subscribe to a pattern, 'image.*'")
    names = ((one,) if isinstance(one, str) else names_of(one) for one in what)
    return tuple(dict.fromkeys(checked_pattern(name) for several in names for name in several))


def _with_subclasses(events: Sequence[type[Event]]) -> Iterator[type[Event]]:
    for event in events:
        yield event
        yield from _with_subclasses(event.__subclasses__())

"""The contracts of an app, and their JSON Schemas: all that it reads, and what its jobs return."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, Protocol

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema

from umbel.jobs.callbacks import is_callback
from umbel.jobs.compatibility import ANNOTATIONS, Schema
from umbel.jobs.contracts import Event, Message, names_of
from umbel.jobs.job import Job
from umbel.jobs.subscription import Subscription
from umbel.jobs.versions import versions_of
from umbel.routing.topics import regex_of

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_INTERNAL = "umbel."
"""Jobs of Umbel's own: what they take is nobody else's business."""
_VALIDATION: Literal["validation"] = "validation"


class Kind(StrEnum):
    """What a contract is of."""

    MESSAGE = "message"
    EVENT = "event"
    CALLBACK = "callback"
    """`Completed` or `Failed`, as one job takes it."""
    RESULT = "result"


@dataclass(frozen=True)
class Consumer:
    """Who takes messages of a contract.

    Attributes:
        job: the name of the job or subscriber.
        queue: where they wait.
    """

    job: str
    queue: str


@dataclass(frozen=True)
class Contract:
    """One version of a contract.

    Attributes:
        name: its wire name; of a callback or a result the job's.
        version: None of a result, which has none of its own.
        kind: what it is of.
        type: what Pydantic reads it as.
        aliases: names that it had before.
        consumers: who takes it.
        newest: whether it is the version that is sent today.
    """

    name: str
    version: int | None
    kind: Kind
    type: Any
    aliases: tuple[str, ...] = ()
    consumers: tuple[Consumer, ...] = ()
    newest: bool = True

    @property
    def key(self) -> str:
        """Its name in files: ``image.resize.v1``, ``image.resize.result``."""
        of_job = f"{self.kind.value}" if self.kind in {Kind.RESULT, Kind.CALLBACK} else ""
        return f"{self.name}.{of_job or f'v{self.version}'}"

    def schema(self, *, written: bool = False) -> Schema:
        """Its JSON Schema (2020-12), an object of its own.

        Args:
            written: of what is written, with all fields, and not of what is read.
        """
        mode: Any = "serialization" if written else _VALIDATION
        try:
            return TypeAdapter(self.type).json_schema(mode=mode)
        except PydanticInvalidForJsonSchema:
            return {}  # a result's type of the user's own


class ContractsApp(Protocol):
    """What is asked of an app."""

    jobs: dict[str, Job[Any, Any, Any]]
    contracts: dict[str, type[Message]]


def contracts_of(app: ContractsApp) -> list[Contract]:
    """All contracts of an app by their names, the newest version of each first.

    Events that are only published are among them where their class is a module's own: an app does
    not declare what it publishes.
    """
    jobs = _jobs(app)
    found = [
        one for contract in contract_classes(app).values() for one in _versions(contract, jobs)
    ]
    for job in jobs:
        taken = (Consumer(job.name, job.work_queue.name),)
        if is_callback(job.contract):
            version = job.contract.contract_version
            found.append(Contract(job.name, version, Kind.CALLBACK, job.contract, (), taken))
        if not isinstance(job, Subscription) and job.result_annotation not in {Any, None, _NONE}:
            found.append(Contract(job.name, None, Kind.RESULT, job.result_annotation, (), taken))
    return sorted(found, key=lambda one: (one.name, one.kind.value, -(one.version or 0)))


_NONE = type(None)


def contract_classes(app: ContractsApp) -> dict[str, type[Message]]:
    """Today's class of each contract, by its wire name."""
    declared = {contract.contract_name: contract for contract in app.contracts.values()}
    older = {one for contract in declared.values() for one in versions_of(contract)}
    for event in _events_of_modules():
        if event not in older and event.contract_name not in app.contracts:
            known = declared.get(event.contract_name, event)
            if event.contract_version >= known.contract_version:
                declared[event.contract_name] = event
    return declared


def unmatched_patterns(app: ContractsApp) -> list[tuple[str, str]]:
    """Subscribers' names and their patterns that match no event that they know."""
    known = [event for event in contract_classes(app).values() if issubclass(event, Event)]
    return [
        (job.name, pattern)
        for job in _jobs(app)
        if isinstance(job, Subscription)
        for pattern in job.work_queue.events
        if not any(_reaches(pattern, job, event) for event in known)
    ]


def json_schema(contract: Contract) -> Schema:
    """A document of its own, with an ``$id``."""
    schema = contract.schema(written=contract.kind is Kind.RESULT)
    which = contract.version if contract.kind in {Kind.MESSAGE, Kind.EVENT} else contract.kind.value
    return {"$schema": DIALECT, "$id": f"urn:umbel:{contract.name}:{which}", **schema}


def bundle(contracts: Iterable[Contract]) -> Schema:
    """All in one document: each is an embedded schema, found by its ``$id`` (2020-12, 9.3)."""
    each = {contract.key: json_schema(contract) for contract in contracts}
    return {"$schema": DIALECT, "$defs": dict(sorted(each.items()))}


def canonical(schema: Any) -> Any:
    """Without what changes nothing on the wire (titles, descriptions, defaults), in one order."""
    if not isinstance(schema, dict):
        return [canonical(one) for one in schema] if isinstance(schema, list) else schema
    plain: Schema = {}
    for name, value in sorted(schema.items()):
        if name in {"properties", "patternProperties", "$defs"}:
            plain[name] = {key: canonical(inner) for key, inner in sorted(value.items())}
        elif name in {"const", "enum"}:
            plain[name] = value
        elif name not in ANNOTATIONS:
            plain[name] = sorted(value) if name == "required" else canonical(value)
    return plain


def _jobs(app: ContractsApp) -> list[Job[Any, Any, Any]]:
    """Those of the user's own."""
    jobs = dict.fromkeys(app.jobs.values())
    return [job for job in jobs if not job.name.startswith(_INTERNAL)]


def _versions(contract: type[Message], jobs: Iterable[Job[Any, Any, Any]]) -> Iterator[Contract]:
    kind = Kind.EVENT if issubclass(contract, Event) else Kind.MESSAGE
    taken = tuple(Consumer(job.name, job.work_queue.name) for job in jobs if _takes(job, contract))
    for one in versions_of(contract):
        aliases = tuple(name for name in names_of(contract) if name != one.contract_name)
        version = one.contract_version
        name = contract.contract_name
        yield Contract(name, version, kind, one, aliases, taken, newest=one is contract)


def _takes(job: Job[Any, Any, Any], contract: type[Message]) -> bool:
    if not isinstance(job, Subscription):
        return job.contract is contract
    return any(_reaches(pattern, job, contract) for pattern in job.work_queue.events)


def _reaches(pattern: str, subscriber: Subscription, event: type[Message]) -> bool:
    """Whether events of a class come by a pattern to a subscriber that takes them."""
    named = any(re.match(regex_of(pattern), name) for name in names_of(event))
    return named and issubclass(event, subscriber.events)


def _events_of_modules() -> list[type[Event]]:
    found = [one for one in _subclasses(Event) if "contract_name" in vars(one) and _is_there(one)]
    return sorted(found, key=lambda one: (one.contract_version, one.__module__, one.__qualname__))


def _is_there(event: type[Event]) -> bool:
    """Not inside a function, and not of a module that was dropped."""
    module: Mapping[str, Any] = vars(sys.modules.get(event.__module__, object))
    return module.get(event.__qualname__) is event


def _subclasses(base: type[Event]) -> Iterator[type[Event]]:
    for one in base.__subclasses__():
        yield one
        yield from _subclasses(one)

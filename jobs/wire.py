"""The envelope: a plain Celery protocol-2 message with our headers beside Celery's.

`docs/wire-format.md` is the table of them. Celery overwrites bare names such as ``origin``, so ours
carry a prefix.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from os import urandom
from typing import Any, NamedTuple, Self

from umbel.jobs.contracts import Message
from umbel.routing.valkey import CLAIM_PROPERTY
from umbel.routing.valkey import DELIVERIES_HEADER as DELIVERIES

CONTRACT = "umbel-contract"
VERSION = "umbel-version"
CORRELATION_ID = "umbel-correlation-id"
CAUSATION_ID = "umbel-causation-id"
PRODUCED_AT = "umbel-produced-at"
TRACKED = "umbel-tracked"
RETURNS = "umbel-returns"
SAGA = "umbel-saga"
EVENT_ID = "ce-id"
ON_SUCCESS = "umbel-on-success"
ON_FAILURE = "umbel-on-failure"

REPR_LENGTH = 1024
"""Longest text of a message in Flower and logs, in characters."""


class Checked(dict[str, Any]):
    """A payload that went through its contract: what is sent on is not checked anew.

    A worker passes a message on (a retry, a return) as it came, with the fields that only newer
    producers know; the check of a first send would refuse them.
    """


class Sealed:
    """A result on its way to Celery: JSON inside, for people what Flower and logs may show."""

    def __init__(self, value: Any, shown_as: str) -> None:
        self.value = value
        self._shown_as = shown_as

    def __json__(self) -> Any:
        """Kombu's hook."""
        return self.value

    def __repr__(self) -> str:
        return self._shown_as


class Envelope(NamedTuple):
    """Our headers of one message.

    Attributes:
        contract: the contract's wire name; None on a plain Celery producer's message.
        version: the contract's version; None likewise.
        correlation_id: joins all that one request set off.
        causation_id: the id of the job or event that sent this; None at the beginning.
        produced_at: when it was first sent, UTC, ISO 8601.
        tracked: whether the store has a record of it; None on a plain producer's message.
        deliveries: runs begun that ended without an outcome, since the last retry.
        returns: how often a worker that was too old for it gave it back.
        on_success: who is to be told of success: a job and its queue, ``job`` and ``queue``, or a
            ``url``.
        on_failure: likewise of failure.
        saga: name and id of the saga that it is a step of, or tells of one: ``order/17``.
    """

    contract: str | None = None
    version: int | None = None
    correlation_id: str | None = None
    causation_id: str | None = None
    produced_at: str | None = None
    tracked: bool | None = None
    deliveries: int = 0
    returns: int = 0
    on_success: dict[str, str] | None = None
    on_failure: dict[str, str] | None = None
    saga: str | None = None

    @classmethod
    def read(cls, headers: Mapping[str, Any]) -> Self:
        """From a message's headers; what is malformed counts as absent, since strangers send too.

        >>> Envelope.read({"umbel-version": 2, "umbel-deliveries": "many"})
        Envelope(contract=None, version=2, ..., deliveries=0, ...)
        """
        known: dict[str, Any] = {
            field: value
            for field, (name, kind) in _HEADERS.items()
            if type(value := headers.get(name)) is kind and _is_sound(value)
        }
        return cls(**known)

    def headers(self) -> dict[str, Any]:
        """As they go on the wire: what is absent is not there."""
        return {
            _HEADERS[field][0]: value
            for field, value in self._asdict().items()
            if value != self._field_defaults[field]
        }


_HEADERS: dict[str, tuple[str, type[Any]]] = {
    "contract": (CONTRACT, str),
    "version": (VERSION, int),
    "correlation_id": (CORRELATION_ID, str),
    "causation_id": (CAUSATION_ID, str),
    "produced_at": (PRODUCED_AT, str),
    "tracked": (TRACKED, bool),
    "deliveries": (DELIVERIES, int),
    "returns": (RETURNS, int),
    "on_success": (ON_SUCCESS, dict),
    "on_failure": (ON_FAILURE, dict),
    "saga": (SAGA, str),
}
"""The header of each field, and what JSON has there."""


def _is_sound(value: Any) -> bool:
    """Numbers count something, and a dictionary names who is to be told."""
    if type(value) is int:
        return value >= 0
    if type(value) is dict:
        known = value.keys() in ({"job", "queue"}, {"url"})
        return known and all(type(part) is str and part.isprintable() for part in value.values())
    return True


def first_headers(
    contract: type[Message], correlation_id: str, causation_id: str | None, *, tracked: bool
) -> dict[str, Any]:
    """Our headers of a message that is sent for the first time."""
    headers = {
        CONTRACT: contract.contract_name,
        VERSION: contract.contract_version,
        CORRELATION_ID: correlation_id,
        CAUSATION_ID: causation_id,
        PRODUCED_AT: now(),
        TRACKED: tracked,
    }
    if causation_id is None:
        del headers[CAUSATION_ID]
    return headers


def new_id() -> str:
    """A UUID, version 4, as `uuid.uuid4` makes it, in a third of the time: each send takes two."""
    text = urandom(16).hex()
    variant = "89ab"[int(text[16], 16) & 3]
    return f"{text[:8]}-{text[8:12]}-4{text[13:16]}-{variant}{text[17:20]}-{text[20:]}"


def now() -> str:
    """UTC, ISO 8601."""
    return datetime.now(UTC).isoformat()


def event_headers(event_id: str, source: str, headers: Mapping[str, Any]) -> dict[str, Any]:
    """An event's headers: ours, and the attributes of a CloudEvent."""
    return {
        **headers,
        EVENT_ID: event_id,
        "ce-specversion": "1.0",
        "ce-type": headers[CONTRACT],
        "ce-source": source,
        "ce-time": headers[PRODUCED_AT],
    }


def shown(value: object) -> str:
    """A message or result for Flower and logs: secrets as stars, long ones cut."""
    text = repr(value)
    return text if len(text) <= REPR_LENGTH else text[: REPR_LENGTH - 1] + "…"


def is_tracked(request: Any) -> bool:
    """Whether a message's job has a record: its header says so, else Celery's `ignore_result`.

    A plain Celery producer that wants a result gets a record from the first run on.
    """
    tracked = vars(request).get(TRACKED)
    return tracked if type(tracked) is bool else not request.ignore_result


def claim_of(request: Any) -> str | None:
    """The claim under which this process holds a message; None on a broker without claims."""
    return (getattr(request, "properties", None) or {}).get(CLAIM_PROPERTY)


def fence_of(request: Any) -> int:
    """Grows from one delivery of a message to the next; 0 on a broker without claims."""
    claim = claim_of(request)
    return int(claim.partition(":")[2].partition(".")[0]) if claim else 0

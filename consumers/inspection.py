"""A look at a message before Celery trips over it."""

from __future__ import annotations

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Annotated, Any, Required

from celery.app.task import Context
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python
from typing_extensions import TypedDict  # Pydantic wants this one before Python 3.12

from umbel.consumers.deadletters import Reason, describe
from umbel.routing.valkey import RAW_HEADER

# Celery makes each header an attribute of the request: these would hide its methods.
_RESERVED = frozenset(
    name
    for name, value in vars(Context).items()
    if name.startswith("_") or callable(value) or isinstance(value, property)
)


class _Signature(BaseModel):  # type: ignore[no-redef]  # the plug-in's __init__ has **kwargs
    """A task that is to follow."""

    model_config = ConfigDict(extra="allow")

    task: str = Field(min_length=1)
    args: list[Any]
    kwargs: dict[str, Any]
    options: dict[str, Any]


class _Embedded(TypedDict, total=False):
    """The third part of the body."""

    callbacks: list[_Signature] | None
    errbacks: list[_Signature] | None
    chain: list[_Signature] | None
    chord: _Signature | None


def _on_the_clock(time: datetime) -> datetime:
    """Celery drops a message whose time is beyond its calendar in some zone."""
    try:
        time.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{time} is no time in UTC") from error
    return time


_Time = Annotated[datetime, AfterValidator(_on_the_clock)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _TaskHeaders(_Embedded, total=False):
    """What Celery's worker relies on in a protocol-2 message, and does not check itself.

    It takes what belongs into the body from here too, where the body has none.
    """

    id: Required[Annotated[str, Field(min_length=1)]]
    task: Required[Annotated[str, Field(min_length=1)]]
    retries: Annotated[int, Field(ge=0)] | None
    eta: _Time | None
    expires: _Time | None
    timelimit: tuple[_Seconds | None, _Seconds | None] | None
    root_id: str | None
    parent_id: str | None
    shadow: str | None
    argsrepr: str | None
    kwargsrepr: str | None
    stamped_headers: list[str] | None
    stamps: dict[str, Any] | None
    replaced_task_nesting: int | None
    group: str | None
    ignore_result: bool | None


_HEADERS = TypeAdapter(_TaskHeaders).validator
_BODY = TypeAdapter(tuple[list[Any], dict[str, Any], _Embedded | None]).validator


class Misfit(Exception):
    """A message that no job can be run for; says why."""

    def __init__(self, reason: Reason, error: str) -> None:
        self.reason = reason
        self.error = error
        super().__init__(reason, error)


def inspect(message: Any, known: Collection[str]) -> None:
    """Let a message pass that Celery can take.

    Args:
        message: Kombu's.
        known: the names of the tasks and jobs of this worker.

    Raises:
        Misfit: there is something that no job can be run for.
    """
    headers = message.headers
    if not isinstance(headers, dict) or headers.get(RAW_HEADER) or "task" not in headers:
        raise Misfit(Reason.MALFORMED, "no Celery message: there is no task header")
    if not _RESERVED.isdisjoint(headers):
        reserved = sorted(_RESERVED & headers.keys())
        raise Misfit(Reason.MALFORMED, f"headers that Celery keeps to itself: {reserved}")
    try:
        _HEADERS.validate_python(headers)
        _BODY.validate_python(message.payload)
        _refuse_too_deep([headers, message.payload])
    except ValidationError as error:
        raise Misfit(Reason.MALFORMED, _first_problems(error)) from error
    except Exception as error:
        what = f"{message.content_type!r}, {message.content_encoding!r}"
        raise Misfit(Reason.MALFORMED, f"cannot decode {what}: {describe(error)}") from error
    if headers["task"] not in known:
        names = ", ".join(sorted(name for name in known if name[:7] != "celery."))
        raise Misfit(
            Reason.UNKNOWN_JOB, f"no job {headers['task']!r} in this worker; it has: {names}"
        )


def _refuse_too_deep(value: Any) -> None:
    """What cannot be pickled for a child: found there, it would cost the pool a place."""
    try:
        to_json(value, fallback=repr, bytes_mode="base64")
    except PydanticSerializationError:  # or it has text that is no Unicode, which is no harm
        to_jsonable_python(value, fallback=repr, bytes_mode="base64")


def _first_problems(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False)[:3]
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'message'}: {problem['msg']}"
        for problem in problems
    )

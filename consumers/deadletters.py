"""What is kept of a message that was not done: dead letters and quarantine.

Both are kept whole, with the reason, under an id that follows from the message: written twice, for
instance by a worker that dies before it acknowledges, they are still one. They are in the
`umbel.consumers.letterbox`; the way back is `umbel.consumers.replay`.
"""

from __future__ import annotations

import reprlib
import traceback as tracebacks
from datetime import UTC, datetime
from enum import StrEnum
from hashlib import sha256
from typing import Annotated, Any

from celery.app.task import Context
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import from_json, to_json


class Kind(StrEnum):
    """Why a message is here."""

    DEAD = "dead"
    """Its job was run and failed for good, or kept killing its process."""
    QUARANTINE = "quarantine"
    """It was never run: nothing here can read it."""


class Reason(StrEnum):
    """The cases, for filters and metrics."""

    FAILED = "failed"
    TIMED_OUT = "timed-out"
    CRASHED = "crashed"
    REJECTED = "rejected"
    MALFORMED = "malformed"
    UNKNOWN_JOB = "unknown-job"
    CONTRACT = "contract"
    TOO_NEW = "too-new"


def _text(value: Any) -> Any:
    """Text that UTF-8 can hold: a stranger's JSON may have half of a surrogate pair."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def _json_types(value: dict[str, Any]) -> dict[str, Any]:
    """Headers of AMQP may hold times and bytes, those of a stranger anything at all."""
    return {_text(name): _readable(part) for name, part in value.items()}


def _readable(value: Any) -> Any:
    try:
        return from_json(to_json(value, fallback=repr, bytes_mode="base64"))
    except (ValueError, RecursionError):  # no Unicode, or deeper than a parser goes
        return _text(reprlib.repr(value))


_Text = Annotated[str, BeforeValidator(_text)]


class DeadLetter(BaseModel):
    """One message that was not done.

    Attributes:
        id: follows from the message: `show` takes it.
        kind: dead or quarantined.
        reason: which case it is.
        error: what went wrong, for people.
        traceback: of the last run, where there was one.
        queue: where the message waited.
        job: the job's name, as far as it is known.
        job_id: likewise.
        attempts: runs begun, retries included.
        produced_at: when it was sent, ISO 8601, where the message says so.
        died_at: when it came here, UTC, by the store's clock.
        shown: the message as logs may show it, secrets as stars.
        content_type: of the body.
        content_encoding: likewise.
        headers: of the message.
        properties: likewise.
        body: the message's own bytes.
    """

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    id: _Text
    kind: Kind
    reason: Reason
    error: _Text
    traceback: _Text = ""
    queue: _Text = ""
    job: _Text = ""
    job_id: _Text = ""
    attempts: int = 0
    produced_at: _Text | None = None
    died_at: datetime = Field(default_factory=lambda: datetime.now(UTC))
    shown: _Text = ""
    content_type: _Text = ""
    content_encoding: _Text = ""
    headers: Annotated[dict[str, Any], BeforeValidator(_json_types)] = {}
    properties: Annotated[dict[str, Any], BeforeValidator(_json_types)] = {}
    body: bytes = b""


def describe(error: BaseException) -> str:
    """An error in one line, for people."""
    text = str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def traceback_of(error: BaseException) -> str:
    """Its traceback as text, from the job's own code on; empty for one that was never raised."""
    frame = error.__traceback__
    while frame and frame.tb_next and frame.tb_frame.f_globals["__name__"].startswith("umbel."):
        frame = frame.tb_next
    return "".join(tracebacks.format_exception(type(error), error, frame)) if frame else ""


def letter_id(job_id: str, produced_at: str | None, body: bytes) -> str:
    """The same for every burial of one message, another for another message with that job id.

    A plain Celery producer does not say when it sent: there two messages with one id and one body
    are the same.
    """
    what = (produced_at or "").encode("utf-8", "backslashreplace") or body
    digest = sha256(job_id.encode("utf-8", "backslashreplace") + what)
    return f"{job_id[:100]}.{digest.hexdigest()[:12]}"


# What a message of protocol 2 has in its headers; Celery's request keeps the rest apart.
_CELERYS = "lang task id shadow eta expires group group_index timelimit root_id parent_id origin"
_CELERYS += " argsrepr kwargsrepr ignore_result replaced_task_nesting stamped_headers stamps"


def headers_of(request: Context) -> dict[str, Any]:
    """All headers with which a message came, of what Celery made of it."""
    celerys = {name: request.get(name) for name in _CELERYS.split()}
    known = {name: value for name, value in celerys.items() if value is not None}
    return {**known, **(request.headers or {})}

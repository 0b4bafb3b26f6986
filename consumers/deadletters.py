"""Where messages end that were not done: dead letters and quarantine.

Both are kept whole, with the reason, under an id that follows from the message: written twice, for
instance by a worker that dies before it acknowledges, they are still one.
"""

from __future__ import annotations

import reprlib
import traceback as tracebacks
from collections.abc import Iterator
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import from_json, to_json

from umbel.config.errors import UnknownJob
from umbel.config.store import Store


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
        died_at: when it came here, UTC.
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


class DeadLetters:
    """The dead letters and the quarantine of one app.

    Args:
        store: where they are.
        namespace: the app's prefix of every key.
    """

    def __init__(self, store: Store, namespace: str) -> None:
        self._store = store
        self._letters = f"{namespace}:deadletters"
        self._by_time = f"{namespace}:deadletters:by-time"

    def add(self, letter: DeadLetter) -> None:
        """Keep it. Settle the message only after this has returned."""
        with self._store.client.pipeline() as together:
            together.hset(self._letters, letter.id, letter.model_dump_json())
            together.zadd(self._by_time, {letter.id: letter.died_at.timestamp()})
            together.execute()

    def newest(
        self, limit: int, kind: Kind | None = None, queue: str | None = None
    ) -> Iterator[DeadLetter]:
        """Up to `limit` of them, the newest first, of one kind or from one queue if given."""
        page, start = 200, 0
        while limit > 0:
            ids = self._store.client.zrevrange(self._by_time, start, start + page - 1)
            if not ids:
                return
            start += page
            for text in self._store.client.hmget(self._letters, [str(id_) for id_ in ids]):
                letter = DeadLetter.model_validate_json(text) if text else None
                if letter and kind in {None, letter.kind} and queue in {None, letter.queue}:
                    yield letter
                    limit -= 1
                    if limit == 0:
                        return

    def get(self, letter_id: str) -> DeadLetter:
        """One, whole, by its id or by its job's id (the newest, where that has several).

        Raises:
            UnknownJob: there is none.
        """
        text = self._store.client.hget(self._letters, letter_id)
        if text:
            return DeadLetter.model_validate_json(text)
        for letter in self.newest(limit=10_000):
            if letter.job_id == letter_id:
                return letter
        raise UnknownJob(f"no dead letter {letter_id!r}; `deadletters list` shows their ids")

    def count(self) -> int:
        """How many there are, of both kinds."""
        return int(self._store.client.hlen(self._letters))

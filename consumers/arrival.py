"""What arrives, in a worker or in a loop that pulls: it is run, or kept with the reason why not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Protocol

from umbel.consumers.deadletters import DeadLetter, Kind, Reason, describe
from umbel.consumers.foreign import AdoptingApp, adopt
from umbel.consumers.inspection import Misfit, inspect
from umbel.consumers.letterbox import DeadLetters
from umbel.consumers.subscriptions import address
from umbel.jobs.records import JobState, Records
from umbel.jobs.wire import Envelope

logger = logging.getLogger("umbel.worker")


class ArrivalApp(AdoptingApp, Protocol):
    """What is needed of an app."""

    @property
    def dead_letters(self) -> DeadLetters: ...
    @property
    def records(self) -> Records: ...


@dataclass(frozen=True)
class Arrivals:
    """One consumer's way with what arrives.

    Attributes:
        app: whose messages they are.
        known: the names of the tasks and jobs that can be run here.
        connection_errors: what says that the connection was lost: no fault of a message.
        events: sends events for Flower; None for nobody.
    """

    app: ArrivalApp
    known: Collection[str]
    connection_errors: tuple[type[Exception], ...]
    events: Any = None

    def take(self, message: Any, run: Callable[[Any], Any]) -> None:
        """Run what can be run; keep the rest, whatever it is.

        Args:
            message: Kombu's.
            run: takes one that a task or job can be run for.
        """
        try:
            adopt(message, self.app)
            address(message, self.app.subscriptions)
            inspect(message, self.known)
            run(message)
        except Misfit as misfit:
            self.quarantine(message, misfit.reason, misfit.error)
        except Exception as error:
            # A lost connection is no fault of the message; but Kombu counts KeyError as one.
            if isinstance(error, self.connection_errors) and not isinstance(error, KeyError):
                raise
            self.refuse(message, error)

    def refuse(self, message: Any, error: Exception) -> None:
        """Keep a message that something fell over."""
        self.quarantine(message, Reason.MALFORMED, describe(error))

    def quarantine(self, message: Any, reason: Reason, error: str) -> None:
        """Keep the message with its raw bytes, then acknowledge it."""
        letter = _letter(message, reason, error)
        self.app.dead_letters.add(letter)
        self._announce(letter)
        message.ack()

    def _announce(self, letter: DeadLetter) -> None:
        logger.error(
            "quarantined a message from queue %s: %s (%s); see: deadletters show %s",
            letter.queue,
            letter.error,
            letter.reason.value,
            letter.id,
            extra={"action": "quarantined", "reason": letter.reason.value, "letter": letter.id},
        )
        if not letter.job_id:
            return
        if Envelope.read(letter.headers).tracked:
            self.app.records.ended(letter.job_id, JobState.FAILED, letter.error)
        if self.events:
            self.events.send(
                "task-failed", uuid=letter.job_id, exception=letter.error, traceback=""
            )


def _letter(message: Any, reason: Reason, error: str) -> DeadLetter:
    headers = message.headers if isinstance(message.headers, dict) else {}
    if not message.errors:  # Kombu has decompressed the body
        headers = {name: value for name, value in headers.items() if name != "compression"}
    return DeadLetter(
        id=_letter_id(message, _text(headers.get("id"))),
        kind=Kind.QUARANTINE,
        reason=reason,
        error=error,
        queue=_text((message.delivery_info or {}).get("routing_key")),
        job=_text(headers.get("task")),
        job_id=_text(headers.get("id")),
        produced_at=Envelope.read(headers).produced_at,
        shown=_text(headers.get("argsrepr")),
        content_type=_text(message.content_type),
        content_encoding=_text(message.content_encoding),
        headers=headers,
        properties=message.properties or {},
        body=_bytes(message.body),
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _bytes(body: Any) -> bytes:
    if isinstance(body, bytes | memoryview):
        return bytes(body)
    return str(body if body is not None else "").encode("utf-8", "backslashreplace")


def _letter_id(message: Any, job_id: str) -> str:
    """The same when the message is delivered again, another one for every other message.

    A stranger's job id may come twice. Kombu's tag stays with a message on Valkey; RabbitMQ's
    counts the deliveries of a channel and says nothing.
    """
    tag = (message.properties or {}).get("delivery_tag") or ""
    digest = sha256(_bytes(tag) + _bytes(message.body)).hexdigest()[:16]
    return f"{job_id[:100]}.{digest}" if job_id else digest

"""The worker's consumer: whatever arrives, the worker goes on and nothing vanishes."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Annotated, Any

from celery.app.task import Context
from celery.apps import worker as celery_worker
from celery.worker import consumer
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic_core import to_jsonable_python

from umbel.config.errors import StoreRequired, UnknownQueue
from umbel.consumers.deadletters import DeadLetter, Kind, Reason, describe
from umbel.jobs.records import JobState
from umbel.jobs.wire import Envelope
from umbel.routing.valkey import RAW_HEADER

logger = logging.getLogger("umbel.worker")

Handler = Callable[[Any], Any]

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


class _Embedded(BaseModel):
    """The third part of the body."""

    model_config = ConfigDict(extra="allow")

    callbacks: list[_Signature] | None = None
    errbacks: list[_Signature] | None = None
    chain: list[_Signature] | None = None
    chord: _Signature | None = None


def _on_the_clock(time: datetime) -> datetime:
    """Celery drops a message whose time is beyond its calendar in some zone."""
    try:
        time.astimezone(UTC)
    except OverflowError as error:
        raise ValueError(f"{time} is no time in UTC") from error
    return time


_Time = Annotated[datetime, AfterValidator(_on_the_clock)]
_Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _TaskHeaders(_Embedded):
    """What Celery's worker relies on in a protocol-2 message, and does not check itself.

    It takes what belongs into the body from here too, where the body has none.
    """

    id: str = Field(min_length=1)
    task: str = Field(min_length=1)
    retries: int | None = Field(default=0, ge=0)
    eta: _Time | None = None
    expires: _Time | None = None
    timelimit: tuple[_Seconds | None, _Seconds | None] | None = None
    root_id: str | None = None
    parent_id: str | None = None
    shadow: str | None = None
    argsrepr: str | None = None
    kwargsrepr: str | None = None
    stamped_headers: list[str] | None = None
    stamps: dict[str, Any] | None = None
    replaced_task_nesting: int | None = 0
    group: str | None = None
    ignore_result: bool | None = None


_BODY: TypeAdapter[Any] = TypeAdapter(tuple[list[Any], dict[str, Any], _Embedded | None])


class Misfit(Exception):
    """A message that no job can be run for; says why."""

    def __init__(self, reason: Reason, error: str) -> None:
        self.reason = reason
        self.error = error
        super().__init__(reason, error)


class Consumer(consumer.Consumer):
    """Celery's consumer, which looks at a message before Celery trips over it."""

    def create_task_handler(self, *args: Any, **options: Any) -> Handler:
        """The function that is called with each message."""
        run: Handler = super().create_task_handler(*args, **options)

        def on_task_received(message: Any) -> None:
            try:
                self.inspect(message)
                run(message)
            except Misfit as misfit:
                self.quarantine(message, misfit.reason, misfit.error)
            except Exception as error:
                # A lost connection is no fault of the message; but Kombu counts KeyError as one.
                if isinstance(error, self.connection_errors) and not isinstance(error, KeyError):
                    raise
                self.quarantine(message, Reason.MALFORMED, describe(error))

        return on_task_received

    def inspect(self, message: Any) -> None:
        """Raise `Misfit` if there is anything that no job can be run for."""
        headers = message.headers
        if not isinstance(headers, dict) or headers.get(RAW_HEADER) or "task" not in headers:
            raise Misfit(Reason.MALFORMED, "no Celery message: there is no task header")
        if reserved := _RESERVED & headers.keys():
            raise Misfit(Reason.MALFORMED, f"headers that Celery keeps to itself: {reserved}")
        try:
            _TaskHeaders.model_validate(headers)
            _BODY.validate_python(message.payload)
            # Too deep to be pickled for a child: found there, it would cost the pool a place.
            to_jsonable_python([headers, message.payload], fallback=repr, bytes_mode="base64")
        except ValidationError as error:
            raise Misfit(Reason.MALFORMED, _first_problems(error)) from error
        except Exception as error:
            what = f"{message.content_type!r}, {message.content_encoding!r}"
            raise Misfit(Reason.MALFORMED, f"cannot decode {what}: {describe(error)}") from error
        if headers["task"] not in self.strategies:
            known = ", ".join(sorted(name for name in self.strategies if name[:7] != "celery."))
            raise Misfit(
                Reason.UNKNOWN_JOB, f"no job {headers['task']!r} in this worker; it has: {known}"
            )

    def quarantine(self, message: Any, reason: Reason, error: str) -> None:
        """Keep the message with its raw bytes, then acknowledge it."""
        headers = message.headers if isinstance(message.headers, dict) else {}
        letter = DeadLetter(
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
        self.app.dead_letters.add(letter)
        self._announce(letter)
        message.ack()

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Celery's would acknowledge, and the message would be gone."""
        self.quarantine(message, Reason.MALFORMED, describe(exc))

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Likewise."""
        self.quarantine(message, Reason.MALFORMED, describe(exc))

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
        if self.event_dispatcher:
            self.event_dispatcher.send(
                "task-failed", uuid=letter.job_id, exception=letter.error, traceback=""
            )


class Worker(celery_worker.Worker):
    """Celery's worker program."""

    def setup_queues(self, include: Any, exclude: Any = None) -> None:
        """What is missing ends the program here, with what to do and not with a traceback.

        A queue that this app does not have, or a place for the dead letters.
        """
        try:
            _ = self.app.dead_letters
            super().setup_queues(include, exclude)
        except (UnknownQueue, StoreRequired) as error:
            raise SystemExit(f"celery worker: {error}") from error

    def on_consumer_ready(self, consumer: Any) -> None:
        """Say what this pool cannot keep."""
        super().on_consumer_ready(consumer)
        if "prefork" in self.pool_cls.__module__:
            return
        limited = [job.name for job in self.app.jobs.values() if job.timeout_s and not job.is_async]
        if limited:
            logger.warning(
                "this pool cannot stop a job that runs too long: timeout_s of %s holds only where "
                "the job looks at context.cancelled; the prefork pool enforces it",
                ", ".join(sorted(limited)),
                extra={"action": "cooperative_timeouts"},
            )


def _first_problems(error: ValidationError) -> str:
    problems = error.errors(include_url=False, include_input=False)[:3]
    return "; ".join(
        f"{'.'.join(str(part) for part in problem['loc']) or 'message'}: {problem['msg']}"
        for problem in problems
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
    tag = message.delivery_tag if isinstance(message.delivery_tag, str) else ""
    digest = sha256(_bytes(tag) + _bytes(message.body)).hexdigest()[:16]
    return f"{job_id[:100]}.{digest}" if job_id else digest

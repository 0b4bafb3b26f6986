"""The pull model: messages come into a loop of the caller's own.

    for delivery in app.pull("images", timeout_s=10):
        with delivery as message:
            ...

The block takes the place of the job's function, and all the rest is as in a worker: the same checks
before it and the same exits after it, in a thread beside the loop (`umbel.consumers.taker`), which
waits here for what comes of the block.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import Token
from queue import SimpleQueue
from traceback import format_exception
from typing import Any, Protocol

from celery._state import _task_stack
from celery.exceptions import Reject
from pydantic import ValidationError

from umbel.consumers.delivery import Delivery
from umbel.jobs.context import JobContext, current
from umbel.jobs.contracts import Message
from umbel.jobs.job import Job
from umbel.jobs.wire import Sealed

_UNSET = object()

DROP_S = 5.0
"""Longest wait for a message to be given back."""


class Pulled:
    """One message in the hands of a loop: ``with delivery as message`` settles it when it is left.

    Left normally, the job is done. An exception counts as the job's: it is retried by its policy or
    goes to the dead letters, is logged, and is not raised again, so that the loop goes on. What is
    no `Exception` (KeyboardInterrupt, SystemExit) gives the message back, uncounted, and goes on.

    Attributes:
        job: the job that the message is for; its function is not called.
        message: after the check of its contract, carried to today's version.
        context: the run: ``progress``, ``cancelled``, ``correlation_id``.
    """

    def __init__(self, delivery: Delivery, message: Message, context: JobContext) -> None:
        self.job: Job[Any, Any, Any] = delivery.job
        self.message = message
        self.context = context
        self._delivery = delivery
        self._result: Any = _UNSET
        self._entered = False
        self._inside: Token[JobContext | None] | None = None
        self._left: SimpleQueue[BaseException | None] = SimpleQueue()
        self._over = threading.Event()

    @property
    def job_id(self) -> str:
        """The id that `send` returned."""
        return self.context.job_id

    @property
    def attempt(self) -> int:
        """Which run this is, from 1."""
        return self.context.attempt

    @property
    def result(self) -> Any:
        """What the job returns: set it in the block, for a handle or a callback that waits for it.

        Raises:
            pydantic.ValidationError: it is not what the job's return annotation says.
        """
        return None if self._result is _UNSET else self._result

    @result.setter
    def result(self, value: Any) -> None:
        self.job.encode_result(value)
        self._result = value

    def __enter__(self) -> Message:
        message = self._enter()
        # What Celery asks, which knows runs by their thread: who sends this, and of what.
        _task_stack.push(self.job)
        self.job.request_stack.push(self._delivery.request)
        return message

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        self.job.request_stack.pop()
        _task_stack.pop()
        self._leave(error)
        self._over.wait()
        return isinstance(error, Exception)

    async def __aenter__(self) -> Message:
        return self._enter()

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> bool:
        self._leave(_without_frames(error))
        await asyncio.to_thread(self._over.wait)
        return isinstance(error, Exception)

    def _enter(self) -> Message:
        if self._entered:
            raise RuntimeError(f"the delivery of job {self.job_id} was settled before")
        self._entered = True
        self._inside = current.set(self.context)
        return self.message

    def _leave(self, error: BaseException | None) -> None:
        if self._inside:
            current.reset(self._inside)
        self._left.put(error)

    # The other side's.

    def outcome(self) -> Sealed:
        """What the block made of it, once it is left.

        Raises:
            Exception: the block's, or Celery's word for giving a message back.
        """
        error = self._left.get()
        if error is not None:
            raise error if isinstance(error, Exception) else back(f"{type(error).__name__}")
        if self._result is _UNSET and not self._is_waited_for:
            return Sealed(None, "None")
        try:
            return self.job.encode_result(self.result)
        except ValidationError as refused:
            raise ValueError(
                "the block did not set delivery.result, which somebody waits for"
            ) from refused

    @property
    def _is_waited_for(self) -> bool:
        """A result that nobody asks for need not be set, whatever the annotation says."""
        asked = self._delivery.tracked or self._delivery.envelope.on_success
        return bool(asked or self.job.idempotency_key)

    def drop(self) -> None:
        """The loop goes on or ends: what it has not begun goes back."""
        if not self._entered:
            self._entered = True
            self._left.put(GeneratorExit())
            self._over.wait(DROP_S)  # the broker may be away, and then it has to wait

    def settled(self) -> None:
        """The block may go on."""
        self._over.set()


def back(why: str) -> Reject:
    """Celery's word for: to the head of its queue, uncounted."""
    return Reject(f"given back by the loop that pulls: {why}", requeue=True)


def _without_frames(error: BaseException | None) -> BaseException | None:
    """With its traceback as text: Celery clears the frames of a failure, and a coroutine that waits
    for its settlement would be closed by that."""
    if error is not None:
        error.add_note("".join(format_exception(error)))
        error.with_traceback(None)
    return error


class Source(Protocol):
    """Where the messages come from: `umbel.consumers.taker.Taker`."""

    def ask(self, timeout_s: float | None) -> Pulled | None:
        """The next; None if none came in time."""

    def stop(self) -> None:
        """That was all."""


def pull(source: Source, limit: int | None, timeout_s: float | None) -> Iterator[Pulled]:
    """See `umbel.Umbel.pull`."""
    try:
        taken = 0
        while (limit is None or taken < limit) and (pulled := source.ask(timeout_s)):
            taken += 1
            yield pulled
            pulled.drop()
    finally:
        source.stop()


async def apull(
    source: Source, limit: int | None, timeout_s: float | None
) -> AsyncIterator[Pulled]:
    """See `umbel.Umbel.apull`."""
    try:
        taken = 0
        while (limit is None or taken < limit) and (
            pulled := await asyncio.to_thread(source.ask, timeout_s)
        ):
            taken += 1
            yield pulled
            await asyncio.to_thread(pulled.drop)
    finally:
        await asyncio.to_thread(source.stop)

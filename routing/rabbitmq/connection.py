"""py-amqp's connection: no wait without an end, heartbeats of its own, and readable to the last."""

from __future__ import annotations

import logging
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from math import inf
from struct import pack, unpack_from
from time import monotonic
from typing import Any

import amqp
from amqp import method_framing
from amqp.exceptions import RecoverableConnectionError
from kombu.transport import pyamqp

from umbel.routing.rabbitmq.channel import Channel
from umbel.routing.rabbitmq.heartbeats import heartbeats
from umbel.routing.valkey import RAW_HEADER

logger = logging.getLogger("umbel.delivery")

ANSWER_TIMEOUT_S = 20.0
"""How long an answer may take: a cluster that elects a leader takes some seconds."""

SILENCE = 2
"""Heartbeats of silence after which the server may take this process for dead."""

_HEADER = 2  # a frame's type: the properties of a message
_HEARTBEAT = b"\x08\0\0\0\0\0\0\xce"  # a frame (AMQP 0-9-1, 4.2.7)
_sending_until: ContextVar[float] = ContextVar("sending_until", default=inf)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """All that connections of this package do in here takes no longer, new connections included."""
    token = _sending_until.set(min(_sending_until.get(), monotonic() + seconds))
    try:
        yield
    finally:
        _sending_until.reset(token)


class Connection(pyamqp.Connection):
    """A connection to a RabbitMQ server.

    Args:
        answer_timeout: seconds that an answer may take.
        confirm_timeout: seconds that the confirmation of a message may take.
        options: py-amqp's.
    """

    Channel = Channel
    connect_timeout: float | None

    def __init__(
        self,
        *args: Any,
        answer_timeout: float = ANSWER_TIMEOUT_S,
        confirm_timeout: float = ANSWER_TIMEOUT_S,
        **options: Any,
    ) -> None:
        self.answer_timeout_s = answer_timeout
        self.confirm_timeout_s = confirm_timeout
        self._until = inf
        self._wire = threading.RLock()
        self._said = 0
        self._said_at = self._looked_at = inf
        options |= {"frame_handler": _reader, "frame_writer": _writer}
        super().__init__(*args, **options)

    def connect(self, callback: Any = None) -> Any:
        """Connect, shake hands and begin to beat, all within `connect_timeout`."""
        if self.connected:
            return super().connect(callback)
        with self.patience(self.connect_timeout or self.answer_timeout_s):
            self.connect_timeout = self._left(self.connect_timeout)
            if not self.connect_timeout:
                raise TimeoutError("no time was left to connect")
            try:
                connected = super().connect(callback)
            except Exception:  # py-amqp does so for some of them
                self.collect()
                raise
        self._said_at = self._looked_at = monotonic()
        heartbeats.add(self)
        return connected

    def close(self, *args: Any, **options: Any) -> Any:
        """Close; a server that does not answer is not waited for as long as for other answers."""
        with self.patience(self.confirm_timeout_s):
            return super().close(*args, **options)

    def collect(self) -> None:
        """Give up the socket and all channels."""
        heartbeats.remove(self)
        self._said_at = inf
        super().collect()

    @contextmanager
    def patience(self, seconds: float) -> Iterator[None]:
        """Answers that are waited for in here come within so many seconds.

        Raises:
            RecoverableConnectionError: they did not. The connection is closed, so that an answer
                that comes late is never taken for that to a later question.
        """
        before, self._until = self._until, min(self._until, monotonic() + seconds)
        try:
            yield
        except TimeoutError as error:
            self.collect()
            raise RecoverableConnectionError(f"no answer within {seconds:.3g} s") from error
        finally:
            self._until = before

    def _left(self, timeout: float | None) -> float | None:
        """Seconds until the nearest end of patience; None for no end."""
        until = min(self._until, _sending_until.get())
        if until == inf:
            return timeout
        left = max(0.0, until - monotonic())
        return left if timeout is None else min(timeout, left)

    def wait(self, *args: Any, timeout: float | None = None, **options: Any) -> Any:
        """Wait for an answer, with an end."""
        with self.patience(timeout or self.answer_timeout_s):
            return super().wait(*args, **options)

    def drain_events(self, timeout: float | None = None) -> None:
        """Wait for an event, with an end: a heartbeat of the server's does not begin it anew."""
        until = monotonic() + timeout if timeout else None
        while not self.blocking_read(max(0.0, until - monotonic()) if until else timeout):
            pass

    def blocking_read(self, timeout: float | None = None) -> Any:
        """Read one frame and act on it.

        The wire is locked for reading what is there, not while waiting for it: TLS must not read
        and write at once.

        Raises:
            RecoverableConnectionError: this process stood still for so long that others may have
                been given what it has not read yet.
        """
        timeout, transport = self._left(timeout), self.transport
        if timeout != 0 and not transport._read_buffer:
            _wait(transport.sock, select.POLLIN, timeout)
        if self.was_silent():
            self.collect()
            raise RecoverableConnectionError("this process was not heard for too long")
        with self._wire, transport.having_timeout(timeout):
            frame = transport.read_frame()
        return self.on_inbound_frame(frame)

    def heartbeat_tick(self, rate: int = 2) -> None:
        """Look for a server that has gone; one that was heard and not yet read has not."""
        with suppress(TimeoutError, OSError, ValueError):
            _wait(self.sock, select.POLLIN, 0)
            self.prev_recv = None
        super().heartbeat_tick(rate)

    def beat(self) -> None:
        """See `heartbeats`; called in their thread."""
        if self.was_silent():
            return  # what reads next will find out
        if self.bytes_sent != self._said:  # since the last look; when, is not known
            self._said_at = self._looked_at
        elif self._wire.acquire(blocking=False):
            try:
                if self.connected:
                    _wait(self.sock, select.POLLOUT, 0)
                    # Past py-amqp, which would note a failure: whoever uses the connection has to
                    # find out, or Kombu makes another and leaves this one to the others.
                    self.transport._write(_HEARTBEAT)
                    self.bytes_sent += 1
                    self._said_at = monotonic()
            except Exception as error:
                logger.debug("no heartbeat: %r", error)
            finally:
                self._wire.release()
        self._said, self._looked_at = self.bytes_sent, monotonic()

    def was_silent(self) -> bool:
        """Whether the server may have given up this process: it was stopped, or its machine was."""
        return bool(self.heartbeat) and monotonic() - self._said_at > SILENCE * self.heartbeat

    def forked(self) -> None:
        """See `heartbeats`: their thread may have held the lock."""
        self._wire = threading.RLock()


def _wait(sock: Any, for_what: int, timeout: float | None) -> None:
    """Until a socket is ready.

    Raises:
        TimeoutError: it is not.
    """
    if for_what == select.POLLIN and getattr(sock, "pending", int)():
        return  # decrypted already
    poll = select.poll()
    poll.register(sock, for_what)
    if not poll.poll(None if timeout is None else timeout * 1000):
        raise TimeoutError("nothing came in time")


def _writer(connection: Connection, transport: Any) -> Callable[..., None]:
    """py-amqp's writer of frames, one at a time."""
    write = method_framing.frame_writer(connection, transport)

    def write_frame(*frame: Any) -> None:
        with connection._wire:
            write(*frame)

    return write_frame


def _reader(connection: Connection, callback: Any) -> Callable[[Any], bool]:
    """py-amqp's reader of frames, which a message's properties do not stop.

    The server hands on what a stranger put into them: text that is no UTF-8, times beyond the
    calendar. Such a message is delivered with `RAW_HEADER` alone.
    """
    read = method_framing.frame_handler(connection, callback)

    def read_frame(frame: Any) -> bool:
        try:
            return bool(read(frame))
        except Exception:
            kind, channel, content = frame
            if kind != _HEADER or _is_readable(content):
                raise
            return bool(read((kind, channel, _raw(content))))

    return read_frame


def _is_readable(header: bytes) -> bool:
    try:
        amqp.Message().inbound_header(header)
    except Exception:  # whatever py-amqp raises
        return False
    return True


def _raw(header: bytes) -> bytes:
    """The same message without its properties."""
    class_id, size = unpack_from(">HxxQ", header)
    marked: bytes = amqp.Message(application_headers={RAW_HEADER: True})._serialize_properties()
    return pack(">HHQ", class_id, 0, size) + marked

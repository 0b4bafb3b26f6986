"""A connection on which nothing waits for an answer."""

from __future__ import annotations

import socket
import struct
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import hiredis
import redis

Command = tuple[Any, ...]
Answered = Callable[[Any], None]


class Pipe:
    """Commands go out together; who asked is told when the answer comes.

    Args:
        connection: not yet connected; this object's own from now on.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        connection.connect()
        self._socket: Any = _bounded_by_kernel(connection._sock)
        self._decrypted = getattr(self._socket, "pending", int)  # by TLS: the poller does not know
        self._reader = hiredis.Reader()
        self._lock = threading.Lock()
        self._awaited: deque[Answered] = deque()

    def fileno(self) -> int:
        """Readable when answers are there."""
        descriptor: int = self._socket.fileno()
        return descriptor

    def ask(self, *commands: Command) -> list[Any]:
        """Send them in one write, and wait for the answers; only where no other is awaited.

        Raises:
            redis.ConnectionError: the connection is lost; what was sent may have arrived.
            redis.ResponseError: the server said no to one.
        """
        self._write(commands)
        answers: list[Any] = []
        while len(answers) < len(commands):
            self._read()
            while (answer := self._reader.gets()) is not False:
                answers.append(answer)
        return [accepted(answer) for answer in answers]

    def send(self, commands: Sequence[tuple[Answered, Command]]) -> None:
        """Send them in one write. Safe in threads.

        Raises:
            redis.ConnectionError: the connection is lost; what was sent may have arrived.
        """
        with self._lock:
            self._awaited.extend([answered for answered, _ in commands])
            self._write([command for _, command in commands])

    def receive(self) -> None:
        """Hand out the answers that are there; waits if there are none.

        Raises:
            redis.ConnectionError: the connection is lost.
        """
        self._read()
        while (answer := self._reader.gets()) is not False:
            if self._awaited:
                self._awaited.popleft()(answer)

    def _write(self, commands: Sequence[Command]) -> None:
        packed = b"".join([hiredis.pack_command(command) for command in commands])
        try:
            self._socket.sendall(packed)
        except OSError as error:
            raise _lost(error) from error

    def _read(self) -> None:
        """What is there; waits if there is nothing at all."""
        try:
            data = self._socket.recv(65536)
            while self._decrypted():
                data += self._socket.recv(65536)
        except OSError as error:
            raise _lost(error) from error
        if not data:
            raise redis.ConnectionError("the server closed the connection")
        self._reader.feed(data)

    def close(self) -> None:
        """What is not answered yet stays so."""
        with suppress(redis.RedisError, OSError):
            self._connection.disconnect()


def _bounded_by_kernel(connected: Any) -> Any:
    """The same timeout, without the system call that Python's own adds to each read and write."""
    timeout_s = connected.gettimeout()
    if timeout_s:
        whole_s = int(timeout_s)
        bound = struct.pack("ll", whole_s, int((timeout_s - whole_s) * 1_000_000))
        for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
            connected.setsockopt(socket.SOL_SOCKET, option, bound)
        connected.settimeout(None)
    return connected


def _lost(error: OSError) -> redis.ConnectionError:
    return redis.ConnectionError(f"the connection was lost: {error}")


def accepted(answer: Any) -> Any:
    """An answer that is no error; a server that was started anew knows no scripts."""
    if isinstance(answer, hiredis.HiredisError):
        kind = redis.ConnectionError if "NOSCRIPT" in str(answer) else redis.ResponseError
        raise kind(str(answer)) from answer
    return answer

"""Kombu's AMQP transport with our connection."""

from __future__ import annotations

from typing import Any

from amqp.exceptions import RecoverableConnectionError
from kombu.transport import pyamqp

from umbel.routing.rabbitmq.connection import Connection

_FRAMES = 100
"""Read at once, before others have their turn."""


class _Bounded:
    """What both kinds have in common."""

    Connection = Connection
    acks_at_once = True
    client: Any
    _in_loop: Any = None

    def establish_connection(self) -> Any:
        """Connect; nobody may go on using channels of a connection that was lost before.

        Kombu makes a new connection as soon as it sees that the old one is broken, and whoever
        holds a channel of that would try it again and again, without a pause.
        """
        if self.client._connection is not None:
            self.client._connection.collect()
        return super().establish_connection()  # type: ignore[misc]

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Called by Celery's worker before it consumes."""
        self._in_loop = connection
        super().register_with_event_loop(connection, loop)  # type: ignore[misc]

    def heartbeat_check(self, connection: Any, rate: int = 2) -> Any:
        """Called by Celery's worker from time to time.

        Raises:
            RecoverableConnectionError: the server is gone, or Kombu has made a new connection,
                which has none of the consumers of the old one.
        """
        if self._in_loop not in {None, connection}:
            raise RecoverableConnectionError("the connection was lost")
        return super().heartbeat_check(connection, rate)  # type: ignore[misc]

    def on_readable(self, connection: Any, loop: Any) -> None:
        """Read what is there.

        Kombu's reads one frame, and the next when the event loop comes round; an acknowledgement
        that the solo pool has made meanwhile waits there for up to two seconds.
        """
        if not connection.connected:
            raise RecoverableConnectionError("the socket was disconnected")
        try:
            for _ in range(_FRAMES):
                connection.drain_events(timeout=0)
        except TimeoutError:
            return
        loop.call_soon(self.on_readable, connection, loop)


class Transport(_Bounded, pyamqp.Transport):
    """For ``amqp://``."""


class SSLTransport(_Bounded, pyamqp.SSLTransport):
    """For ``amqps://``."""

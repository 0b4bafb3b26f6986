"""A way out to the server: any number of commands, one round trip."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any

import redis
from kombu.exceptions import OperationalError

from umbel.routing.valkey.pipe import Command, Pipe

AT_ONCE = 500
"""Most messages of one write."""


def check_replicas(found: int, wanted: int) -> None:
    """Whether enough replicas have what was sent.

    Raises:
        OperationalError: they have not. It is there all the same: sending it again, as one does
            after a lost connection, would make a second copy.
    """
    if found < wanted:
        raise OperationalError(f"the message is on {found} replicas, min_replicas={wanted}")


class Outlet:
    """A connection to the server that a broker URL names, made when it is first needed.

    Args:
        connection: of Kombu, with our transport; this object's own from now on.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._pipe: Pipe | None = None

    def push(self, queue: str, elements: Sequence[bytes], *also: tuple[str, str, bytes]) -> None:
        """Put elements into a queue, the first first, and publish events.

        Args:
            queue: its name.
            elements: Kombu's messages as JSON.
            also: an exchange of the kind fanout, a routing key, the message as JSON.

        Raises:
            redis.ConnectionError: no answer in time; they may be there.
            OperationalError: see `check_replicas`.
        """
        channel = self._channel
        key = channel.global_keyprefix + queue
        commands: list[Command] = [
            ("LPUSH", key, *elements[start : start + AT_ONCE])
            for start in range(0, len(elements), AT_ONCE)
        ]
        for exchange, routing_key, event in also:
            topics = channel._get_publish_topics(exchange, routing_key)
            commands += [("PUBLISH", topic, event) for topic in topics]
        if channel.min_replicas:
            timeout_ms = int((channel.socket_timeout or 5) * 500)
            commands.append(("WAIT", channel.min_replicas, timeout_ms))
        answers = self._exchange(commands)
        if channel.min_replicas:
            check_replicas(answers[-1], channel.min_replicas)

    def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        try:
            if self._pipe is None:
                self._pipe = Pipe(self._channel._new_connection())
            return self._pipe.ask(*commands)
        except (redis.RedisError, OSError):
            self._disconnect()
            raise

    @cached_property
    def _channel(self) -> Any:
        """Kombu's, for what it knows of the server; without Kombu's pauses between tries."""
        transport = self._connection.transport
        return transport.create_channel(transport)

    def _disconnect(self) -> None:
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def close(self) -> None:
        """Close the connection; the next push would connect anew."""
        self._disconnect()
        self.__dict__.pop("_channel", None)
        with suppress(redis.RedisError, OSError):
            self._connection.close()

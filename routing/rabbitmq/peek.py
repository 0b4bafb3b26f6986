"""A look at what waits on the server.

AMQP has no such look: messages are got, and given back when the channel closes. The server puts
what came back to a queue with an ``x-delivery-limit`` behind the rest: so all that is ready is got,
or nothing, and the order stays. And it counts: the limit is 100, and what was given back more often
goes to the app's net.
"""

from __future__ import annotations

from contextlib import closing
from typing import Any

from amqp.exceptions import NotFound, ResourceLocked
from kombu.transport import pyamqp

from umbel.routing.rabbitmq.delays import waiting_rooms, way_back

MOST_RETURNS = 50
"""A queue whose next message was given back that often is left alone: half of the limit."""

_COUNT_HEADER = "x-delivery-count"


def waiting(connection: Any, queue: str, most: int) -> tuple[int, list[Any], str]:
    """How many messages are ready in a queue, those that are taken next, and why no more.

    Args:
        connection: Kombu's.
        queue: its name.
        most: how many to look at.

    Returns:
        The number, the messages, and what kept us from looking on; empty for nothing.
    """
    found: list[Any] = []
    try:
        with closing(connection.channel()) as channel:
            total = channel.queue_declare(queue, passive=True).message_count
            if total > most:
                return total, [], f"some would go behind the others: --sample {total} for all"
            while len(found) < most and (raw := channel.basic_get(queue)) is not None:
                message = pyamqp.Message(raw, channel=channel)
                if (message.headers.get(_COUNT_HEADER) or 0) >= MOST_RETURNS:
                    return total, found, f"a message was given back {MOST_RETURNS} times already"
                way_back(message.delivery_info)
                message.delivery_info.update(exchange="", routing_key=queue)
                found.append(message)
            return total, found, ""
    except NotFound:
        return 0, [], ""
    except ResourceLocked:
        return total, [], "it has shards, of which the server shows nothing but to their consumer"


def delayed(connection: Any, namespace: str) -> int:
    """How many messages wait for their time; getting them would change it."""
    return sum(_ready(connection, queue) for queue in waiting_rooms(namespace))


def _ready(connection: Any, queue: str) -> int:
    try:
        with closing(connection.channel()) as channel:
            return int(channel.queue_declare(queue, passive=True).message_count)
    except NotFound:
        return 0

"""Messages that wait for their time on the server, and not in a worker's memory.

A delay of up to `SOON_S` waits in one queue: that of the second in which it ends, with the time
left as the message's own expiry. The server keeps the time of that, so an outage costs only itself.

A longer one takes Kombu's native delayed delivery: a queue for each bit of the seconds, which a
message leaves when that time is over, under the app's own names. Celery would use it for topic
exchanges only, declare it at the start of every worker, and fail on less than a second. A server
that is away passes nothing on, so such a delay may end later by an outage.

Less than a second is not needed of either: what a worker gets so much ahead, it keeps so long.
"""

from __future__ import annotations

from collections.abc import Iterable
from time import time
from types import SimpleNamespace
from typing import Any

from kombu.entity import Exchange, Queue, binding
from kombu.transport.native_delayed_delivery import (
    CELERY_DELAYED_DELIVERY_EXCHANGE,
    MAX_LEVEL,
    MAX_NUMBER_OF_BITS_TO_USE,
    calculate_routing_key,
    declare_native_delayed_delivery_exchanges_and_queues,
    level_name,
)

LONGEST_S = 2**MAX_NUMBER_OF_BITS_TO_USE - 1
"""More than eight years."""

SECONDS = 64
"""Queues for the seconds in which a delay ends: each serves every 64th."""

SOON_S = SECONDS - 4
"""Longest delay that takes one; the rest is for clocks that differ."""


class Entrance(Exchange):
    """The exchange that a message with a time goes to; declaring it declares all that is behind."""

    attrs = (*Exchange.attrs, ("namespace", None))
    namespace = ""

    def __init__(self, namespace: str = "", **options: Any) -> None:
        self.namespace = namespace
        super().__init__(**{"name": level_name(MAX_LEVEL, namespace), "type": "topic"} | options)

    def declare(self, nowait: bool = False, passive: Any = None, channel: Any = None) -> None:
        """Called by Kombu once for each connection."""
        channel = channel or self.channel
        connection: Any = SimpleNamespace(channel=lambda: channel)
        declare_native_delayed_delivery_exchanges_and_queues(connection, "quorum", self.namespace)


class _Reached(Queue):
    """A queue, with the binding through which what has waited comes."""

    def __hash__(self) -> int:
        """What Kombu notes as declared: not the same as the queue alone."""
        return hash(f"reached|{self.name}")


class Delays:
    """The delays of one app.

    Args:
        namespace: prefix of the names.
    """

    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._entrance = Entrance(namespace)
        self._soon = Exchange(f"{namespace}_delayed_soon", type="topic")
        self._exit = Exchange(f"{namespace}_{CELERY_DELAYED_DELIVERY_EXCHANGE}", type="topic")

    def way(self, queue: Queue, seconds: float) -> dict[str, Any]:
        """The options of a publish to a queue, so and so many seconds from now.

        Both ways end in the same exchange. There each bit is a word before the queue's name, and
        no more: a pattern with ``#`` would match queues whose names end alike.

        Args:
            seconds: 1 or more.
        """
        bits = "*." * MAX_NUMBER_OF_BITS_TO_USE
        reached = _Reached(
            queue.name,
            exchange=None,
            bindings=[binding(self._exit, routing_key=bits + queue.name)],
            durable=True,
            queue_arguments=queue.queue_arguments,
        )
        if seconds > SOON_S:
            return {
                "exchange": self._entrance,
                "routing_key": calculate_routing_key(min(int(seconds), LONGEST_S), queue.name),
                "declare": [self._entrance, reached],
                "mandatory": True,
            }
        now = time()
        second = int(now + seconds)
        number = second % SECONDS
        return {
            "exchange": self._soon,
            "routing_key": calculate_routing_key(SECONDS + number, queue.name),
            "declare": [self._waits(number), reached],
            "mandatory": True,
            "expiration": second - now,
        }

    def _waits(self, number: int) -> Queue:
        """The queue of a second, by the last bits of a key."""
        free = MAX_NUMBER_OF_BITS_TO_USE - (SECONDS - 1).bit_length()
        bits = calculate_routing_key(SECONDS + number, "#").split(".", free)[-1]
        return Queue(
            _room(number, self._namespace),
            self._soon,
            routing_key="*." * free + bits,
            durable=True,
            queue_arguments={
                "x-queue-type": "quorum",
                "x-overflow": "reject-publish",
                "x-dead-letter-exchange": self._exit.name,
                "x-dead-letter-strategy": "at-least-once",
            },
        )


def not_kept(delays_s: Iterable[float]) -> str | None:
    """What of some delays this broker keeps in part only; None if there is no such."""
    if max(delays_s, default=0) <= SOON_S:
        return None
    return (
        f"RabbitMQ may end retry delays over {SOON_S} s later, by as long as it was away meanwhile "
        "(docs/delivery.md, RabbitMQ)"
    )


def waiting_rooms(namespace: str) -> list[str]:
    """The names of all queues in which an app's messages wait for their time."""
    levels = [level_name(level, namespace) for level in range(MAX_LEVEL + 1)]
    return levels + [_room(number, namespace) for number in range(SECONDS)]


def _room(number: int, namespace: str) -> str:
    return f"{namespace}_delayed_soon_{number}"


def way_back(delivery_info: dict[str, Any]) -> None:
    """Let a message that came late be one of its queue: a retry must not wait for the first time.

    Args:
        delivery_info: of the delivery; changed.
    """
    if delivery_info.get("exchange", "").endswith(f"_{CELERY_DELAYED_DELIVERY_EXCHANGE}"):
        words = delivery_info["routing_key"].split(".", MAX_NUMBER_OF_BITS_TO_USE)
        delivery_info.update(exchange="", routing_key=words[-1])

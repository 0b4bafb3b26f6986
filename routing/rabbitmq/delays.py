"""Messages that wait for their time on the server, and not in a worker's memory.

Kombu's native delayed delivery: a queue for each bit of the seconds, which a message leaves when
that time is over, under the app's own names. Celery would use it for topic exchanges only, declare
it at the start of every worker, and fail on less than a second. There it is not needed: what a
worker gets ahead of its time, by less than a second, it keeps so long.
"""

from __future__ import annotations

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
        self._entrance = Entrance(namespace)
        self._exit = Exchange(f"{namespace}_{CELERY_DELAYED_DELIVERY_EXCHANGE}", type="topic")

    def way(self, queue: Queue, seconds: float) -> dict[str, Any]:
        """The options of a publish to a queue, so and so many seconds from now.

        Each bit is a word before the queue's name, and no more: a pattern with ``#`` would match
        queues whose names end alike.
        """
        bits = "*." * MAX_NUMBER_OF_BITS_TO_USE
        reached = _Reached(
            queue.name,
            exchange=None,
            bindings=[binding(self._exit, routing_key=bits + queue.name)],
            durable=True,
            queue_arguments=queue.queue_arguments,
        )
        return {
            "exchange": self._entrance,
            "routing_key": calculate_routing_key(min(int(seconds), LONGEST_S), queue.name),
            "declare": [self._entrance, reached],
            "mandatory": True,
        }


def way_back(delivery_info: dict[str, Any]) -> None:
    """Let a message that came late be one of its queue: a retry must not wait for the first time.

    Args:
        delivery_info: of the delivery; changed.
    """
    if delivery_info.get("exchange", "").endswith(f"_{CELERY_DELAYED_DELIVERY_EXCHANGE}"):
        words = delivery_info["routing_key"].split(".", MAX_NUMBER_OF_BITS_TO_USE)
        delivery_info.update(exchange="", routing_key=words[-1])

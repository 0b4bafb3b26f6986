"""Work queues: their names and how each broker is asked for them."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal, get_args
from zlib import crc32

from kombu.entity import Exchange, Queue, binding

from umbel.config.errors import SettingsError
from umbel.config.settings import Settings
from umbel.routing.topics import topics

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,199}")
_DIRECT = Exchange("", type="direct")

# Never to be changed lightly: RabbitMQ refuses a queue that is declared with other arguments than
# before. Far above `max_deliveries`, for the server counts what was only prefetched too.
_DELIVERY_LIMIT = 100

PASSING_MS = 10_000
"""How long RabbitMQ keeps a queue that ends with its process, once it is gone."""

Priority = Literal["high", "normal", "low"]
"""Of two messages that wait, the one of the higher goes first."""
LEVELS: tuple[Priority, ...] = get_args(Priority)


@dataclass(frozen=True)
class WorkQueue:
    """A direct work queue: many producers, many consumers, each message to one of them.

    With priorities or shards it is a family of queues on the broker, see `parts`.

    Attributes:
        name: the queue's name on the broker, as given.
        max_deliveries: runs begun that may end without an outcome (the process died) before the
            message goes to the dead letters; None takes the setting ``max_deliveries``.
        prefetch: most messages of it that one worker holds, running and waiting; of a family, of
            each of its queues. By default as many as the worker runs at a time.
        priorities: whether messages are sent with a priority: `Priority`.
        shards: number of its shards. The messages of a key go to one shard, and of a shard one is
            at work at a time, in the order of their sending.
        events: patterns of the names of the events that it gets; a subscriber's queue has them.
        instance: names this process, where each has a queue of its own that ends with it: a
            subscriber's with ``broadcast=True``.
    """

    name: str
    max_deliveries: int | None = None
    prefetch: int | None = None
    priorities: bool = False
    shards: int | None = None
    events: tuple[str, ...] = ()
    instance: str | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"{self.name!r} is no queue name; expected letters, digits, '.', '_' and '-'"
            )
        for field in ("max_deliveries", "prefetch", "shards"):
            if (value := getattr(self, field)) is not None and value < 1:
                raise ValueError(f"{field}={value} of queue {self.name!r}; >= 1")
        if self.shards and (self.priorities or self.prefetch):
            raise ValueError(
                f"queue {self.name!r} has shards, which keep their order and run one message at a "
                "time: no priorities=, no prefetch="
            )
        if self.events and (self.shards or self.priorities):
            raise ValueError(
                f"queue {self.name!r} is a subscriber's: events have no priorities and no shards; "
                "send a job's message from the subscriber"
            )

    @classmethod
    def named(cls, queue: WorkQueue | str) -> WorkQueue:
        """A plain string is a queue with defaults."""
        return queue if isinstance(queue, WorkQueue) else cls(queue)

    def configured(self, settings: Settings) -> WorkQueue:
        """With what the settings say of it.

        Raises:
            SettingsError: that does not go together with what code says.
        """
        given = settings.queues.get(self.name)
        if given is None:
            return self
        try:
            return replace(self, **given.model_dump(exclude_unset=True))
        except ValueError as error:
            raise SettingsError(f"setting queues: {error}") from error

    @property
    def parts(self) -> tuple[str, ...]:
        """The names of its queues on the broker, those to be served first in front.

        >>> WorkQueue("images", priorities=True).parts
        ('images.high', 'images', 'images.low')
        >>> WorkQueue("orders", shards=2).parts
        ('orders.0', 'orders.1')
        """
        if self.shards:
            return tuple(f"{self.name}.{number}" for number in range(self.shards))
        if self.instance:
            return (f"{self.name}.{self.instance}",)
        return tuple(self.at(level) for level in LEVELS) if self.priorities else (self.name,)

    def at(self, priority: Priority | None) -> str:
        """The queue for messages of a priority.

        Raises:
            ValueError: this queue has no priorities, or there is no such one.
        """
        if priority is None:
            return self.parts[0] if self.instance else self.name
        if not self.priorities:
            raise ValueError(
                f"queue {self.name!r} has no priorities: WorkQueue({self.name!r}, priorities=True)"
            )
        if priority not in LEVELS:
            raise ValueError(f"priority={priority!r}; expected {', '.join(map(repr, LEVELS))}")
        return self.name if priority == "normal" else f"{self.name}.{priority}"

    def shard(self, key: object) -> str:
        """The queue for messages of a key: by the CRC-32 of its text in UTF-8.

        Any language has that, so that any program may send.

        >>> WorkQueue("orders", shards=4).shard("customer-7")
        'orders.0'
        """
        return f"{self.name}.{crc32(str(key).encode()) % (self.shards or 1)}"


def declaration(
    queue: WorkQueue, part: str | None = None, *, namespace: str, net: Queue | None
) -> Queue:
    """The queue as Kombu declares it.

    It hangs on the default exchange: a message's way back (retry, restore) then leads to this one
    queue and to no other (AMQP 0-9-1, 3.1.3.1).

    Args:
        queue: what is wanted.
        part: which of its queues, where it has several.
        namespace: whose events it may get.
        net: on RabbitMQ, where the server puts what it gives up; see `safety_net`.
    """
    name = part or queue.parts[0]
    exchange = topics(namespace)
    bindings = {binding(exchange, routing_key=pattern) for pattern in queue.events}
    if queue.instance:
        # The server deletes it once nobody has consumed it for so long: a blip loses nothing.
        passing = {"x-expires": PASSING_MS} if net else None
        return Queue(
            name,
            _DIRECT,
            routing_key=name,
            durable=True,
            auto_delete=net is None,  # our transport's word for: when the lease of its process ends
            queue_arguments=passing,
            bindings=bindings,
        )
    arguments = net and {
        "x-queue-type": "quorum",
        "x-delivery-limit": _DELIVERY_LIMIT,
        "x-dead-letter-exchange": "",
        "x-dead-letter-routing-key": net.name,
        # Kept in its queue until the net has it; that needs the other (RabbitMQ, Quorum Queues).
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        **({"x-single-active-consumer": True} if queue.shards else {}),
    }
    declared = Queue(name, _DIRECT, routing_key=name, durable=True, queue_arguments=arguments)
    declared.bindings = bindings
    return declared


def not_kept(queue: WorkQueue, net: Queue | None) -> str | None:
    """What a queue is declared with, and its broker keeps in part only; None if there is no such.

    Args:
        net: see `safety_net`.
    """
    if net and queue.priorities:
        return (
            "RabbitMQ does not keep priorities strictly: a worker holds messages of each level and "
            "serves the levels in turn (docs/queues.md, Priorities)"
        )
    return None


def safety_net(namespace: str) -> Queue:
    """The queue for what RabbitMQ gives up by itself, delivered and returned without an end.

    The second net: what fails or kills its process is in our dead letters long before.
    """
    name = f"{namespace}.given-up"
    return Queue(
        name,
        _DIRECT,
        routing_key=name,
        durable=True,
        queue_arguments={"x-queue-type": "quorum"},
    )


def webhook_queue(namespace: str) -> str:
    """The name of the queue of callbacks to URLs."""
    return f"{namespace}.webhooks"


def namespace_of(settings: Settings, app_name: str) -> str:
    """The prefix of every key and exchange of an app: the setting, else the app's name."""
    return settings.namespace or _word(app_name)


def queue_of_subscriber(app_name: str, subscriber: str) -> str:
    """The name of a subscriber's queue."""
    return f"{_word(app_name)}.{_word(subscriber)}"


def _word(text: str) -> str:
    return re.sub(r"[^\w.-]", "-", text)

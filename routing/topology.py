"""What an app needs on its broker: declared there, and compared with what is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from amqp.exceptions import ChannelError, NotFound, PreconditionFailed
from kombu.entity import Queue

from umbel.config.errors import SettingsError
from umbel.routing.topics import topics

_LOOK_S = 1.0
"""How long workers are waited for that say what they consume."""


@dataclass(frozen=True)
class Finding:
    """One thing that is not as the app declares it.

    Attributes:
        subject: a queue's name or an exchange's.
        problem: what is the matter, and what to do.
        differs: whether the broker differs; else it is only worth knowing.
    """

    subject: str
    problem: str
    differs: bool = True


def declare(app: Any) -> list[str]:
    """See to it that all queues and subscriptions of an app are there. Returns the queues' names.

    From then on events are kept for its subscribers. What is there already stays as it is.

    Raises:
        SettingsError: a queue is there with other arguments.
        OperationalError: the broker is not reached.
    """
    with _connected(app) as connection:
        if net := app.amqp.net:
            net(connection.default_channel).declare()
        topics(app.prefix)(connection.default_channel).declare()
        for queue in _lasting(app):
            try:
                queue(connection.default_channel).declare()
            except PreconditionFailed as error:
                raise SettingsError(_other_arguments(error)) from error
    for family in app.amqp.queues.families.values():
        if family.shards:
            app.shard_maps.check(family)
    return [queue.name for queue in _lasting(app)]


def check(app: Any) -> list[Finding]:
    """What is not on the broker as an app declares it. Changes nothing.

    Raises:
        OperationalError: the broker is not reached.
    """
    with _connected(app) as connection:
        on_broker = _on_rabbitmq if app.amqp.net else _on_valkey
        return [*on_broker(app, connection), *_shards(app), *_unconsumed(app, connection)]


def waiting(app: Any, queue: str) -> int | None:
    """How many messages wait in a queue of the broker; None if there is no such queue.

    On Valkey and Redis an empty queue is none.
    """
    with _connected(app) as connection:
        return _waiting(connection, queue)


def _lasting(app: Any) -> list[Queue]:
    """The app's queues but those that end with a process: a broadcast's, of each worker its own."""
    return [queue for queue in app.amqp.queues.values() if not _passes(app, queue.name)]


def _passes(app: Any, queue: str) -> bool:
    family = app.amqp.queues.families.get(queue.rpartition(".")[0])
    return bool(family and family.instance)


def _waiting(connection: Any, name: str) -> int | None:
    with connection.channel() as channel:
        try:
            counted: int = Queue(name, channel=channel).queue_declare(passive=True).message_count
        except ChannelError:
            return None
        return counted


def bound(app: Any, queue: str) -> bool:
    """Whether events of the app go to a queue. On RabbitMQ: whether there is such a queue."""
    if app.amqp.net:
        return waiting(app, queue) is not None
    with _connected(app) as connection:
        return any(name == queue for _, name in _bindings(app, connection))


def _on_rabbitmq(app: Any, connection: Any) -> Iterator[Finding]:
    for queue in (app.amqp.net, *_lasting(app)):
        if _waiting(connection, queue.name) is None:
            yield Finding(queue.name, "is not there: topology declare, or start a worker")
            continue
        try:
            with connection.channel() as channel:  # an error closes it
                queue(channel).queue_declare()  # it is there: this compares its arguments
        except PreconditionFailed as error:
            yield Finding(queue.name, _other_arguments(error))
    exchange = topics(app.prefix)
    if app.subscriptions:
        try:
            with connection.channel() as channel:
                exchange(channel).declare(passive=True)
        except NotFound:
            yield Finding(exchange.name, "is not there: topology declare, or start a worker")
        yield Finding(
            exchange.name,
            "RabbitMQ does not list the bindings of an exchange to its clients: subscriptions that "
            "nobody declares any more are not seen here (rabbitmqctl list_bindings shows them)",
            differs=False,
        )


def _on_valkey(app: Any, connection: Any) -> Iterator[Finding]:
    declared = {
        (binding.routing_key, queue.name) for queue in _lasting(app) for binding in queue.bindings
    }
    there = {one for one in _bindings(app, connection) if not _passes(app, one[1])}
    for pattern, queue in sorted(declared - there):
        yield Finding(queue, f"does not get {pattern!r} yet: topology declare, or start a worker")
    for pattern, queue in sorted(there - declared):
        yield Finding(
            queue,
            f"gets {pattern!r}, which no subscription of this app declares, and keeps it: "
            f"topology unsubscribe NAME --queue {queue}",
        )


def _bindings(app: Any, connection: Any) -> set[tuple[str, str]]:
    """The patterns of the exchange for events, each with the queue that gets what matches."""
    table = connection.default_channel.get_table(topics(app.prefix).name)
    return {(pattern, queue) for pattern, _, queue in table}


def _shards(app: Any) -> Iterator[Finding]:
    for queue in app.amqp.queues.families.values():
        if not queue.shards:
            continue
        known = app.shard_maps.known(queue)
        if known is not None and known != queue.shards:
            yield Finding(
                queue.name,
                f"has {known} shards in use, and this program has {queue.shards}: see app.reshard",
            )


def _unconsumed(app: Any, connection: Any) -> Iterator[Finding]:
    """Queues in which messages wait that no worker takes: perhaps a queue's name is mistyped."""
    counts = {one.name: _waiting(connection, one.name) or 0 for one in _lasting(app)}
    if not any(counts.values()):
        return
    answers = app.control.inspect(timeout=_LOOK_S, connection=connection).active_queues() or {}
    consumed = {queue["name"] for queues in answers.values() for queue in queues}
    for name in sorted(name for name, count in counts.items() if count and name not in consumed):
        yield Finding(
            name,
            f"{counts[name]} messages wait, and no worker answered that consumes it",
            differs=False,
        )


def _other_arguments(error: PreconditionFailed) -> str:
    return (
        f"is there with other arguments ({error.reply_text}), which cannot be changed: delete it "
        "once it is empty, or take another name"
    )


@contextmanager
def _connected(app: Any) -> Iterator[Any]:
    with app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, interval_max=0.1)
        yield connection

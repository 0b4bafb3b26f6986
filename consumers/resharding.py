"""Another number of shards for a queue: what waits goes to the shard of its key."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from umbel.config.errors import ContractError
from umbel.consumers.delivery import received
from umbel.jobs.job import Job
from umbel.jobs.wire import Envelope
from umbel.routing.queues import WorkQueue, declaration


def reshard(app: Any, queue: WorkQueue) -> int:
    """Move all messages of a queue to where they belong by now. Returns how many there are.

    Each key's messages keep their order. Interrupted anywhere, it can be repeated.

    Args:
        app: whose queue.
        queue: as it is to be.
    """
    before = replace(queue, shards=app.shard_maps.read(queue))
    parts = tuple(dict.fromkeys((*before.parts, *queue.parts)))
    with app.connection_for_write() as connection:
        channel = connection.default_channel
        producer = connection.Producer(channel)
        # All of them, before the first message is put into one.
        waiting = sum(_declared(app, queue, part, channel) for part in parts)
        for part in parts:
            _move(app, queue, part, channel, producer)
    app.shard_maps.write(queue)
    return waiting


def _move(app: Any, queue: WorkQueue, part: str, channel: Any, producer: Any) -> None:
    """What is in a queue now, to the end of the queue that it belongs to."""
    for _ in range(_declared(app, queue, part, channel)):
        message = channel.basic_get(part)
        if message is None:
            return
        message = channel.message_to_python(message)
        producer.publish(
            message.body,
            routing_key=_home(app, queue, message) or part,
            content_type=message.content_type,
            content_encoding=message.content_encoding,
            headers=message.headers,
            correlation_id=message.properties.get("correlation_id"),
            reply_to=message.properties.get("reply_to"),
        )
        message.ack()


def _declared(app: Any, queue: WorkQueue, part: str, channel: Any) -> int:
    """See to it that a queue is there. Returns how many messages wait in it."""
    declared = declaration(queue, part, namespace=app.prefix, net=app.amqp.net)
    waiting: int = declared(channel).queue_declare().message_count
    return waiting


def _home(app: Any, queue: WorkQueue, message: Any) -> str | None:
    """The shard of a message's key; None for what no worker will read."""
    job: Job[Any, Any, Any] | None = app.jobs.get(message.headers.get("task"))
    if job is None or job.work_queue.name != queue.name:
        return None
    try:
        args, kwargs, _ = message.decode()
        envelope = Envelope.read(message.headers)
        return job.queue_for(received(job.contract_for(envelope.contract), args, kwargs, envelope))
    except (ContractError, ValueError, TypeError):
        return None

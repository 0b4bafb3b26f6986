"""The short way to RabbitMQ: on Celery's own connections, and one wait for many confirmations."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from typing import Any

import amqp
from amqp.exceptions import RecoverableConnectionError
from kombu.common import maybe_declare

from umbel.jobs.wire import CAUSATION_ID, CORRELATION_ID, PRODUCED_AT, TRACKED
from umbel.producers.express import BODY, Express, Lineage, Parcel, Quoted
from umbel.routing.drawer import Letter
from umbel.routing.rabbitmq import Refused, SSLTransport, Transport, refusals_named, within

logger = logging.getLogger("umbel.producers")

AT_ONCE, AT_ONCE_BYTES = 100, 1_000_000
"""Most messages that are confirmed together, within the time of one send."""

Addressed = tuple[amqp.Message, str, str]
"""A message, its exchange and its routing key."""

_TRANSIENT, _DURABLE = 1, 2

_JSON = {"content_type": "application/json", "content_encoding": "utf-8"}


class ConfirmedExpress(Express):
    """The short way out where the broker confirms what it has."""

    _is_mute = False

    def _reaches(self) -> bool:
        """Not where somebody wants no confirmations."""
        connection = self._app.connection_for_write()
        is_ours = isinstance(connection.transport, Transport | SSLTransport)
        return is_ours and bool(connection.transport_options.get("confirm_publish"))

    def takes(self, letters: Sequence[Letter]) -> bool:
        """Delays have a way of their own."""
        at_once = not any(letter.headers.get("eta") for letter in letters)
        return at_once and super().takes(letters)

    def _prepared(self, headers: dict[str, Any], queue: str) -> dict[str, Any]:
        del queue  # is in no message
        return headers

    def _filled(
        self, prepared: dict[str, Any], parcel: Parcel, lineage: Lineage, quoted: Quoted
    ) -> amqp.Message:
        del quoted  # no JSON here
        headers = {
            **prepared,
            "id": parcel.job_id,
            "root_id": lineage.root or parcel.job_id,
            "parent_id": lineage.parent,
            "argsrepr": parcel.shown,
            "ignore_result": parcel.ignore_result,
            CORRELATION_ID: parcel.correlation_id,
            PRODUCED_AT: parcel.produced_at,
            TRACKED: parcel.tracked,
            **parcel.more,
        }
        if parcel.causation_id is not None:
            headers[CAUSATION_ID] = parcel.causation_id
        ids = {"correlation_id": parcel.job_id, "reply_to": self._app.thread_oid}
        return _message(BODY % parcel.payload, headers, ids)

    def _of(self, letter: Letter, queue: str) -> amqp.Message:
        del queue  # likewise
        return _message(letter.body, letter.headers, letter.properties)

    def _push(
        self, queue: str, first: str, messages: Sequence[amqp.Message], events: list[bytes]
    ) -> Iterator[int]:
        del first  # an announcement has no id here
        sent = 0
        with self._app.producer_or_acquire() as producer:
            while sent < len(messages):
                some = _at_once(messages, sent)
                try:
                    self._publish(producer, queue, some, events[sent : sent + len(some)])
                except Refused as error:
                    yield error.taken
                    raise
                sent += len(some)
                yield len(some)

    def _publish(
        self, producer: Any, queue: str, messages: Sequence[amqp.Message], events: list[bytes]
    ) -> None:
        """On a new connection where the old one is lost."""

        def publish() -> None:
            channel = producer.channel
            _declare(self._app.amqp.queue(queue), channel)
            also = self._announcement(events, channel) if events and not self._is_mute else []
            channel.publish_together([*((one, "", queue) for one in messages), *also])

        connection, conf = producer.connection, self._app.conf
        if conf.task_publish_retry:
            policy = conf.task_publish_retry_policy
            connection.transport_options.update(policy)  # Kombu's does so: it connects by it too
            publish = connection.ensure(producer, publish, **policy)
        with within(self._timeout_s), refusals_named(), connection._reraise_as_library_errors():
            publish()

    def _announcement(self, events: list[bytes], channel: Any) -> list[Addressed]:
        """What goes out with the messages: a wait of its own would cost as much as theirs."""
        exchange, (routing_key, body) = self._events.exchange, self._together(events)
        try:
            with refusals_named():
                _declare(exchange, channel)
        except Refused as error:
            logger.warning("Flower is told of no message that this process sends: %s", error)
            self._is_mute = True
            raise RecoverableConnectionError("its channel is closed") from error
        message = _message(body, self._events.headers, {}, mode=_TRANSIENT)
        return [(message, exchange.name, routing_key)]

    @cached_property
    def _timeout_s(self) -> float:
        return float(self._app.settings.publish_timeout_s)


def _at_once(messages: Sequence[amqp.Message], start: int) -> Sequence[amqp.Message]:
    """Those that are to be confirmed together, from one on."""
    sizes = accumulate(len(message.body) for message in messages[start : start + AT_ONCE])
    fit = sum(size <= AT_ONCE_BYTES for size in sizes)
    return messages[start : start + max(1, fit)]


def _declare(entity: Any, channel: Any) -> None:
    """Once a connection: Kombu's `maybe_declare` makes a copy of the entity to find out."""
    connection = channel.connection
    if not connection or hash(entity) not in connection.client.declared_entities:
        maybe_declare(entity, channel)


def _message(
    body: bytes, headers: dict[str, Any], properties: dict[str, Any], mode: int = _DURABLE
) -> amqp.Message:
    return amqp.Message(
        body, application_headers=headers, delivery_mode=mode, **_JSON, **properties
    )

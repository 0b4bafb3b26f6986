"""The short way to RabbitMQ: on Celery's own connections, and one wait for many confirmations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import amqp
from kombu.common import maybe_declare

from umbel.jobs.wire import CAUSATION_ID, CORRELATION_ID, PRODUCED_AT, TRACKED
from umbel.producers.express import BODY, Express, Lineage, Parcel, Quoted
from umbel.routing.drawer import Letter
from umbel.routing.rabbitmq import Refused, refusals_named, within

AT_ONCE = 100
"""Most messages that are confirmed together, within the time of one send."""

_TRANSIENT, _DURABLE = 1, 2

Addressed = tuple[amqp.Message, str, str]
"""A message, its exchange and its routing key."""

_JSON = {"content_type": "application/json", "content_encoding": "utf-8"}


class ConfirmedExpress(Express):
    """The short way out where the broker confirms what it has."""

    def _reaches(self) -> bool:
        return self._app.amqp.net is not None

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
    ) -> None:
        del first  # an announcement has no id here
        with self._app.producer_or_acquire() as producer:
            publish = self._insisting(producer)
            letters = [(message, "", queue) for message in messages]
            also = [self._announcement(events)] if events else []
            for start in range(0, len(letters), AT_ONCE):
                some = letters[start : start + AT_ONCE]
                is_last = start + AT_ONCE >= len(letters)
                try:
                    with within(self._timeout_s), refusals_named():
                        publish(producer, queue, [*some, *also] if is_last else some)
                except Refused as error:
                    error.taken += start
                    raise

    def _insisting(self, producer: Any) -> Callable[..., None]:
        """`_publish`, on a new connection where the old one is lost; with Kombu's errors."""
        policy = dict(self._app.conf.task_publish_retry_policy)
        if not self._app.conf.task_publish_retry:
            policy["max_retries"] = 0
        connection = producer.connection
        connection.transport_options.update(policy)  # as Kombu's producer does: to connect, too
        publish: Callable[..., None] = connection.ensure(producer, self._publish, **policy)
        return publish

    def _publish(self, producer: Any, queue: str, letters: Sequence[Addressed]) -> None:
        channel = producer.channel
        _declare(self._app.amqp.queue(queue), channel)
        if self._events:
            _declare(self._events.exchange, channel)
        channel.publish_together(letters)

    def _announcement(self, events: list[bytes]) -> tuple[amqp.Message, str, str]:
        routing_key, body = self._together(events)
        message = _message(body, self._events.headers, {}, mode=_TRANSIENT)
        return message, self._events.exchange.name, routing_key

    @cached_property
    def _timeout_s(self) -> float:
        return float(self._app.settings.publish_timeout_s)


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

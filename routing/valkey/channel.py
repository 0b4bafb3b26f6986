"""Kombu's Redis channel with our claims in the place of its destructive pops."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import count
from queue import Empty
from types import MappingProxyType
from typing import Any
from uuid import uuid4

import redis
from kombu.exceptions import DecodeError
from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps, loads
from kombu.utils.scheduling import cycle_by_name
from redis.backoff import NoBackoff
from redis.retry import Retry

from umbel.config.embedded import EmbeddedConnection
from umbel.routing.json import loads as read_json
from umbel.routing.refusals import Refused
from umbel.routing.service import Service
from umbel.routing.topics import is_topics, regex_of
from umbel.routing.valkey.claims import MOST_AHEAD, Claims
from umbel.routing.valkey.elements import read_element
from umbel.routing.valkey.lease import BEATS, CLAIM_PROPERTY, Lease, leases
from umbel.routing.valkey.outlet import check_replicas
from umbel.routing.valkey.scripts import PUT

logger = logging.getLogger("umbel.delivery")

OPTIONS = ("lease_s", "min_replicas")
"""Transport options beside Kombu's."""

JSON = "application/json"

_numbers = count(1)


class Message(virtual.Message):
    """A message whose tag is its claim: of two copies of one message each has its own."""

    def __init__(self, payload: dict[str, Any], channel: Any = None, **options: Any) -> None:
        super().__init__(payload, channel=channel, **options)
        self.delivery_tag = payload["properties"].get(CLAIM_PROPERTY, self.delivery_tag)

    def _decode(self) -> Any:
        """JSON, as nearly all is, without Kombu's search for what reads it."""
        if not (self.body and self.accept and self.content_type == JSON and JSON in self.accept):
            return super()._decode()
        try:
            return read_json(self.body)
        except Exception as error:
            raise DecodeError(error) from error

    def begun(self) -> None:
        """Its job begins: from here on it counts as a run. Safe in threads; never waits."""
        # What came back from a worker that died may be what killed it, and may do so at once.
        at_once = bool(self.delivery_info.get("redelivered"))
        self.channel.qos.begun(self.delivery_tag, at_once=at_once)

    def keep(self) -> None:
        """It will be run, also if the channel closes."""
        self.channel.qos.keep(self.delivery_tag)


class QoS(kombu_redis.QoS):
    """What a channel has delivered and not settled; Kombu's part of it is for plain workers."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._kept: set[str] = set()

    def append(self, message: Any, delivery_tag: str) -> None:
        """It is claimed already."""
        virtual.QoS.append(self, message, delivery_tag)

    def room(self) -> int | None:
        """How many more messages may be delivered; None for any number."""
        estimate: int | None = self.can_consume_max_estimate()
        return estimate

    def keep(self, tag: str) -> None:
        """See `Message.keep`."""
        self._kept.add(tag)

    def begun(self, tag: str, *, at_once: bool) -> None:
        """See `Message.begun`."""
        self._kept.add(tag)
        if ":" in tag:
            self.channel.claims.begun(tag, at_once=at_once)

    def ack(self, delivery_tag: str) -> None:
        """Safe in threads; never waits."""
        if ":" in delivery_tag:
            self.channel.claims.settle(delivery_tag)
        virtual.QoS.ack(self, delivery_tag)
        self._kept.discard(delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        """Back to the head of its queue, or dropped."""
        if not requeue:
            self.ack(delivery_tag)
            return
        self.channel.claims.give_back([delivery_tag])
        self._quick_ack(delivery_tag)
        self._kept.discard(delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Everything back to its queue but what runs; called when the channel closes."""
        self._flush()
        self.channel.close_claims(keep=self._kept & self._delivered.keys())
        self._delivered.clear()

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """What a plain worker took and never settled: back to where it came from.

        Only if that is known: Kombu drops a message whose exchange it does not know.
        """
        with self.channel.conn_or_acquire(client) as found:
            text = found.hget(self.unacked_key, tag)
            if text:
                _, exchange, routing_key = loads(bytes_to_str(text))
                if not self.channel._lookup(exchange, routing_key):
                    logger.warning("no queue for a message of a dead plain worker: %s", tag)
                    return
            super().restore_by_tag(tag, found, leftmost)


class Topic(virtual.exchange.TopicExchange):
    """The kind of exchange that events go to; Kombu's ``#`` does not stand for no word."""

    def key_to_pattern(self, rkey: str) -> str:
        """A binding's key as a regular expression."""
        return regex_of(rkey)

    def deliver(self, message: Any, exchange: str, routing_key: str, **options: Any) -> None:
        """A copy to each queue; all of them or none."""
        queues = self.channel._lookup(exchange, routing_key)
        if "_publish_batch" in options:
            for queue in queues:
                self.channel._put(queue, message, **options)
        elif queues:
            self.channel.put_copies(queues, message)


class Claiming(kombu_redis.Channel):
    """The channel, as a layer over Kombu's for Redis and its kind for Sentinel.

    Queues that are consumed without acknowledgement (replies) are left to Kombu's pop: at most
    once is what was asked for.
    """

    QoS = QoS
    Message = Message
    exchange_types = {**kombu_redis.Channel.exchange_types, "topic": Topic}  # noqa: RUF012  Kombu's
    from_transport_options = (
        *kombu_redis.Channel.from_transport_options,
        "lease_s",
        "min_replicas",
    )
    lease_s = 10.0
    min_replicas = 0
    services: Mapping[str, Service] = MappingProxyType({})
    """How queues are to be served, by their names; others as they come."""
    most_ahead = MOST_AHEAD
    """Most messages that are claimed beyond what may run now."""
    _claims: Claims | None = None

    def __init__(self, *args: Any, **options: Any) -> None:
        self._claimed_queues: list[str] = []
        self._popped_queues: list[str] = []
        self._passing: dict[str, set[tuple[str, str, str]]] = {}
        super().__init__(*args, **options)
        self._claim_cycle = cycle_by_name(self.queue_order_strategy)()

    @property
    def active_queues(self) -> list[str]:
        """Those that Kombu pops from."""
        return self._popped_queues

    def basic_consume(self, queue: str, no_ack: bool = False, *args: Any, **options: Any) -> Any:
        """Consume; with acknowledgement, by claims."""
        if queue not in self._fanout_queues:
            mine = self._popped_queues if no_ack else self._claimed_queues
            mine.append(queue)
        consuming = super().basic_consume(queue, no_ack, *args, **options)
        self._bind_passing(queue)
        self._update_claims()
        return consuming

    def _basic_cancel(self, consumer_tag: str) -> Any:
        queue = self._tag_to_queue.get(consumer_tag)
        for mine in (self._claimed_queues, self._popped_queues):
            if queue in mine:
                mine.remove(queue)
        cancelled = super()._basic_cancel(consumer_tag)
        self._update_claims()
        return cancelled

    def _update_claims(self) -> None:
        self._claim_cycle.update(dict.fromkeys(map(self._family, self._claimed_queues)))
        if self._claimed_queues or self._claims:
            self.claims.consume(self._claimed_queues)

    @property
    def claims(self) -> Claims:
        """What this channel takes; it begins to be a consumer when it is first asked for."""
        if self._claims is None:
            self._claims = Claims(
                connect=self._new_connection,
                lease=self.lease,
                prefix=self.global_keyprefix,
                number=next(_numbers),
                room=self.qos.room,
                service=lambda queue: self.services.get(queue) or Service(queue),
                lists=self._lists_in_turn,
                deliver=self._deliver_claimed,
                most_ahead=self.most_ahead,
            )
        return self._claims

    @cached_property
    def lease(self) -> Lease:
        """This process on this server."""
        kwargs = self.pool.connection_kwargs
        server = [str(kwargs.get(part)) for part in ("host", "port", "path", "service_name", "db")]
        return leases.of(
            (*server, self.connection.client.as_uri()),
            self._lease_client,
            self.global_keyprefix,
            self.lease_s,
        )

    def _lease_client(self) -> redis.Redis:
        """Of its own: it outlives this channel, and must hear of a dead server in time."""
        manager = self._sentinel_manager  # this channel's, which is closed with it
        pool = self._get_pool()
        self._sentinel_manager = manager
        patience_s = self.lease_s / BEATS
        pool.connection_kwargs.update(socket_timeout=patience_s, socket_connect_timeout=patience_s)
        return redis.Redis(connection_pool=pool)

    def _new_connection(self) -> Any:
        """Not one of the pool's: it is never given back."""
        return self.pool.connection_class(**self.pool.connection_kwargs)

    def _family(self, queue: str) -> str:
        service = self.services.get(queue)
        return service.family if service else queue

    def _lists_in_turn(self) -> list[tuple[str, str]]:
        """Of all queues that are consumed, the next in turn first; of a family, its first queue."""
        families = self._claim_cycle.consume(len(self._claimed_queues))
        if not self.services:
            return self._lists(families)
        turn = {family: place for place, family in enumerate(families)}
        order = {queue: place for place, queue in enumerate(self.services)}
        return self._lists(
            sorted(
                self._claimed_queues,
                key=lambda queue: (turn[self._family(queue)], order.get(queue, 0)),
            )
        )

    def _lists(self, queues: Sequence[str]) -> list[tuple[str, str]]:
        """The keys of queues' ready lists and their queues, by priority."""
        return [
            (self.global_keyprefix + self._q_for_pri(queue, priority), queue)
            for priority in self.priority_steps
            for queue in queues
        ]

    def _deliver_claimed(self, message: dict[str, Any], queue: str) -> None:
        self._claim_cycle.rotate(self._family(queue))
        self.connection._deliver(message, queue)

    def flush(self) -> None:
        """Settle on the server what was settled here, without waiting for its answer."""
        self.claims.flush()

    def close_claims(self, keep: Iterable[str] = ()) -> None:
        """Stop taking; what has not begun goes back."""
        if self._claims is not None and not self._claims.closed:
            self.connection.cycle.remove_claims(self)
            self._claims.close(keep)

    def close(self) -> None:
        """Kombu's closes the connections first and restores after."""
        if not self.closed and self._qos is not None:
            self._qos.restore_unacked_once()
        self.close_claims()
        super().close()

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        """One message, now or not at all."""
        found = self.claims.one(self._lists([queue]))
        if found is None:
            raise Empty
        return found

    def basic_get(self, queue: str, no_ack: bool = False, **options: Any) -> Any:
        """Likewise; without acknowledgement it is settled at once."""
        message = super().basic_get(queue, no_ack, **options)
        if message is not None and no_ack:
            self.claims.settle(message.delivery_tag)
        return message

    def _brpop_read(self, **options: Any) -> bool:
        try:
            try:
                popped = self.client.parse_response(self.client.connection, "BRPOP", **options)
            except self.connection_errors:
                self.client.connection.disconnect()
                raise
            if not popped:
                raise Empty
            key, element = popped
            queue = bytes_to_str(key).rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            self.connection._deliver(read_element(element, queue), queue)
            return True
        finally:
            self._in_poll: Any = None
            self._flush_brpop_reauth()

    def _put(self, queue: str, message: dict[str, Any], **options: Any) -> None:
        """A message into a queue; within `Producer.batch`, with others."""
        if "_publish_batch" in options:
            super()._put(queue, _copy(message, queue), **options)
        else:
            self.put_copies([queue], message)

    def basic_publish(
        self, message: dict[str, Any], exchange: str, routing_key: str, **options: Any
    ) -> Any:
        """Publish; what is ``mandatory`` must find a queue, as in AMQP (0-9-1, 1.8.3.3).

        Raises:
            Refused: no queue is bound there: Kombu would drop the message without a word.
        """
        if options.get("mandatory") and not self._lookup(exchange, routing_key):
            raise Refused(f"no queue: from exchange {exchange!r} to {routing_key!r}")
        return super().basic_publish(message, exchange, routing_key, **options)

    def put_copies(self, queues: Collection[str], message: dict[str, Any]) -> None:
        """One copy of a message into each of these queues, or into none.

        Raises:
            OperationalError: see `check_replicas`.
        """
        priority = self._get_message_priority(message, reverse=False)
        keys = [self.global_keyprefix + self._q_for_pri(queue, priority) for queue in queues]
        elements = [dumps(_copy(message, queue)) for queue in queues]
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as together:
            together.execute_command("EVAL", PUT, len(keys), *keys, *elements)
            if self.min_replicas:
                timeout_ms = int((self.socket_timeout or 5) * 500)
                together.execute_command("WAIT", self.min_replicas, timeout_ms)
            *_, replicas = together.execute()
        if self.min_replicas:
            check_replicas(replicas, self.min_replicas)

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """A queue that ends with its process is bound by its consumer, and by nobody else."""
        if queue in self.auto_delete_queues and is_topics(exchange):
            self._passing.setdefault(queue, set()).add((exchange, routing_key, pattern))
        else:
            super()._queue_bind(exchange, routing_key, pattern, queue)

    def _bind_passing(self, queue: str) -> None:
        prefix = self.global_keyprefix
        lists = [prefix + self._q_for_pri(queue, priority) for priority in self.priority_steps]
        for exchange, routing_key, pattern in self._passing.get(queue, ()):
            tables = [self.keyprefix_queue, self.keyprefix_binding_permanent]
            member = self.sep.join([routing_key or "", pattern or "", queue])
            # Noted first: whatever happens in between, it ends with this process.
            self.lease.own([prefix + table % exchange for table in tables], member, lists)
            super()._queue_bind(exchange, routing_key, pattern, queue)

    def unsubscribe(self, queue: str, exchange: str) -> int:
        """Forget a queue and its bindings. Returns how many messages were dropped with it."""
        dropped = int(self.queue_purge(queue) or 0)
        with self.conn_or_acquire() as client:
            for key in (self.keyprefix_queue, self.keyprefix_binding_permanent):
                members = client.smembers(key % exchange)
                gone = [one for one in members if bytes_to_str(one).split(self.sep)[2:] == [queue]]
                if gone:
                    client.srem(key % exchange, *gone)
        self.state.queue_bindings_delete(queue)
        return dropped

    @contextmanager
    def conn_or_acquire(self, client: Any = None) -> Iterator[Any]:
        """Kombu makes a new client for every command; one does, and is safe in threads."""
        yield client or self._one_client

    @cached_property
    def _one_client(self) -> Any:
        return self._create_client()

    def _disconnect_pools(self) -> None:
        self.__dict__.pop("_one_client", None)
        super()._disconnect_pools()

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        params: dict[str, Any] = super()._connparams(asynchronous)
        # redis-py would try ten times with growing pauses; how often a send is tried again is
        # Celery's to say (task_publish_retry_policy).
        params["retry"] = Retry(NoBackoff(), 0)
        # Answers only, and in order: with RESP3 the server pushes messages in between.
        params["protocol"] = 2
        connection_class = params["connection_class"]
        if connection_class is redis.UnixDomainSocketConnection:
            params["connection_class"] = EmbeddedConnection
        elif issubclass(connection_class, redis.UnixDomainSocketConnection):
            params["connection_class"] = type("C", (connection_class, EmbeddedConnection), {})
        return params


def _copy(message: dict[str, Any], queue: str) -> dict[str, Any]:
    """With the way back to this queue and no other; each copy that an exchange makes has a tag."""
    properties = message["properties"]
    if not properties["delivery_info"].get("exchange"):
        return message
    own = {
        "delivery_tag": str(uuid4()),
        "delivery_info": {"exchange": "", "routing_key": queue},
    }
    return {**message, "properties": {**properties, **own}}


class Channel(Claiming):
    """For a server by its address."""


class SentinelChannel(Claiming, kombu_redis.SentinelChannel):
    """For the primary that Sentinels name."""

    from_transport_options = (*kombu_redis.SentinelChannel.from_transport_options, *OPTIONS)

"""py-amqp's channel: a message that was sent is with the server, or there is an error."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from hashlib import sha256
from math import inf
from types import MappingProxyType
from typing import Any

import amqp
from amqp import spec
from amqp.exceptions import RecoverableConnectionError
from kombu.transport import pyamqp

from umbel.routing.rabbitmq.ahead import Ahead
from umbel.routing.rabbitmq.delays import way_back
from umbel.routing.rabbitmq.runs import Runs
from umbel.routing.refusals import Refused
from umbel.routing.service import Service
from umbel.routing.topics import is_topics
from umbel.routing.valkey import DELIVERIES_HEADER

_DURABLE = 2
_COUNT_HEADER = "x-delivery-count"  # how often a quorum queue has had it back, run or not
_TOOK_TOO_LONG = "delivery acknowledgement on channel"  # and so on: consumer_timeout was over


@contextmanager
def refusals_named() -> Iterator[None]:
    """One kind of error for each way in which the server says no, to callers and to Kombu.

    Raises:
        Refused: with the server's words.
    """
    try:
        yield
    except (amqp.IrrecoverableConnectionError, amqp.ChannelError) as error:
        raise Refused(str(error)) from error


class Message(pyamqp.Message):
    """A message that knows how many of its runs had no outcome."""

    def __init__(self, msg: amqp.Message, channel: Any = None, **options: Any) -> None:
        super().__init__(msg, channel=channel, **options)
        way_back(self.delivery_info)
        if is_topics(self.delivery_info.get("exchange", "")):
            queue = channel.queues.get(self.delivery_info["consumer_tag"])
            self.delivery_info.update(exchange="", routing_key=queue)
        self.came_back = bool(self.headers.get(_COUNT_HEADER))
        self.run = channel.runs.key(self.headers, self._own_id) if channel.runs else ""
        if self.run and self.came_back and (lost := channel.runs.lost(self.run)):
            before = self.headers.get(DELIVERIES_HEADER)
            self.headers[DELIVERIES_HEADER] = lost + (before if type(before) is int else 0)

    def _own_id(self) -> str:
        """Of a document that is no task: two that say the same of themselves are one."""
        body = self.body if isinstance(self.body, bytes) else str(self.body).encode()
        return str(self.properties.get("message_id") or sha256(body).hexdigest())

    def begun(self) -> None:
        """Its job begins: from here on it counts as a run. Safe in threads; never waits."""
        self.channel.begun(self)


class Channel(pyamqp.Channel):
    """A channel; with ``confirm_publish`` each durable message is confirmed.

    Events and remote control are not durable: nobody waits for them, and nobody misses them.

    Attributes:
        queues: that are consumed here, by their consumers' tags.
        runs: where the runs of what is delivered here are counted; None for not at all.
        services: how queues are to be served, by their names; others as they come.
    """

    Message = Message
    connection: Any
    runs: Runs | None = None
    services: Mapping[str, Service] = MappingProxyType({})

    def __init__(self, *args: Any, **options: Any) -> None:
        # The bytes as they came: a stranger's encoding may be any codec that Python has.
        options["auto_decode"] = False
        self.queues: dict[str, str] = {}
        self._prefetch = 0
        self._published = 0
        self._unconfirmed: set[int] = set()
        self._refusals: list[str] = []
        self._first_refused = inf
        self._begun: dict[int, tuple[str, bool]] = {}
        self._loop: Any = None
        self._ahead: dict[str, Ahead] = {}
        super().__init__(*args, **options)

    def begun(self, message: Any) -> None:
        """See `Message.begun`."""
        if self.runs:
            self.runs.begin(message.run, came_back=message.came_back)
            self._begun[message.delivery_tag] = message.run, message.came_back

    def read_ahead(self, loop: Any) -> None:
        """Where jobs are short, from now on: what is consumed here runs in other processes.

        Args:
            loop: the worker's event loop.
        """
        self._loop = loop

    def basic_consume(self, queue: str = "", consumer_tag: str = "", **options: Any) -> Any:
        """Consume, and know where what comes was."""
        service = self.services.get(queue)
        if service and service.prefetch is not None:
            return self._consume(queue, consumer_tag, service.prefetch, **options)
        if not self._loop or not self._prefetch or options.get("no_ack"):
            return self._consume(queue, consumer_tag, self._prefetch, **options)
        take = options.pop("callback")
        begin = partial(self._consume, queue, **options)
        ahead = self._ahead[consumer_tag] = Ahead(
            self, consumer_tag, self._prefetch, loop=self._loop, begin=begin, take=take
        )
        ahead.refill()
        return consumer_tag

    def basic_cancel(self, consumer_tag: str, *args: Any, **options: Any) -> Any:
        """Consume no more."""
        if ahead := self._ahead.pop(consumer_tag, None):
            return ahead.end()
        return super().basic_cancel(consumer_tag, *args, **options)

    def is_heard(self) -> bool:
        """Whether what was delivered here is still ours to begin, as far as is known."""
        return bool(self.connection) and not self.connection.was_silent()

    def _consume(self, queue: str, tag: str, prefetch: int, **options: Any) -> Any:
        """The bound holds for the consumers that begin after it (RabbitMQ, Consumer Prefetch)."""
        self.queues[tag] = queue
        before = self._prefetch
        if prefetch == before:
            return super().basic_consume(queue, tag, **options)
        self._allow(prefetch)
        consuming = super().basic_consume(queue, tag, **options)
        self._allow(before)
        return consuming

    def _allow(self, prefetch: int) -> None:
        """`basic_qos` without a wait: the server does one thing after the other."""
        self.send_method(spec.Basic.Qos, "lBb", (0, prefetch, False))

    def basic_qos(self, prefetch_size: int, prefetch_count: int, *args: Any, **rest: Any) -> Any:
        """Set how many messages each consumer that begins now may hold."""
        self._prefetch = prefetch_count
        return super().basic_qos(prefetch_size, prefetch_count, *args, **rest)

    def unsubscribe(self, queue: str, exchange: str) -> int:
        """Forget a queue and its bindings. Returns how many messages were dropped with it."""
        return int(self.queue_delete(queue) or 0)

    def basic_ack(self, delivery_tag: int, *args: Any, **options: Any) -> None:
        """Acknowledge: there is an outcome."""
        super().basic_ack(delivery_tag, *args, **options)
        key, came_back = self._begun.pop(delivery_tag, ("", False))
        if self.runs and key:
            self.runs.settled(key, came_back=came_back)
        self._free(delivery_tag)

    def basic_reject(self, delivery_tag: int, *args: Any, **options: Any) -> None:
        """Give back: whoever says so lives."""
        super().basic_reject(delivery_tag, *args, **options)
        self._call_off([delivery_tag])
        self._free(delivery_tag)

    def _free(self, delivery_tag: int) -> None:
        for ahead in self._ahead.values():
            ahead.settled(delivery_tag)

    def flush(self) -> None:
        """Nothing waits here: what was settled is on its way."""

    def collect(self) -> None:
        """The channel is gone; what ran is called off, and that is no fault of the job."""
        self._call_off(list(self._begun))
        super().collect()

    def _call_off(self, tags: list[int]) -> None:
        for tag in tags:
            key, _ = self._begun.pop(tag, ("", False))
            if self.runs and key:
                self.runs.called_off(key)

    def _on_close(self, reply_code: int, reply_text: str, *method: int) -> None:
        if _TOOK_TOO_LONG in reply_text:
            self._begun.clear()  # these count
        super()._on_close(reply_code, reply_text, *method)

    def wait(self, *args: Any, timeout: float | None = None, **options: Any) -> Any:
        """Wait for an answer, with an end."""
        if self.connection is None:
            return super().wait(*args, **options)  # raises what says so
        with self.connection.patience(timeout or self.connection.answer_timeout_s):
            return super().wait(*args, **options)

    def confirm_select(self, nowait: bool = False) -> Any:
        """From here on the server confirms; it numbers the messages of the channel from 1."""
        selected = super().confirm_select(nowait)
        self._published = 0
        self._unconfirmed.clear()
        self._confirm_selected = True
        return selected

    def basic_publish_confirm(  # noqa: PLR0917  as py-amqp's
        self,
        msg: amqp.Message,
        exchange: str = "",
        routing_key: str = "",
        mandatory: bool = False,
        immediate: bool = False,
        timeout: float | None = None,
        confirm_timeout: float | None = None,
    ) -> None:
        """Publish; a durable message is with the server when this returns.

        One that goes to a queue by its name must find it (``mandatory``, AMQP 0-9-1, 1.8.3.3): the
        queue may have been deleted since it was declared.

        Raises:
            Refused: the server has no such queue, the message is too large, the queue is full …
            RecoverableConnectionError: there was no answer; the message may be there.
        """
        with self._bounded(confirm_timeout or timeout) as seconds:
            self._send(msg, exchange, routing_key, mandatory, immediate, seconds)
            self._await_confirmations()

    def publish_together(self, letters: Iterable[tuple[amqp.Message, str, str]]) -> None:
        """Publish several, and wait once for all that are durable.

        Args:
            letters: messages, each with its exchange and its routing key.

        Raises:
            Refused: at least one was not taken; the others may have been.
            RecoverableConnectionError: there was no answer; each may or may not be there.
        """
        if not self._confirm_selected:
            self.confirm_select()  # begins to count anew
        before, self._first_refused = self._published, inf
        try:
            with self._bounded(None) as seconds:
                for message, exchange, routing_key in letters:
                    self._send(message, exchange, routing_key, False, False, seconds)
                self._await_confirmations()
        except Refused as error:
            first = min({self._first_refused, *self._unconfirmed})
            error.taken = int(first) - before - 1 if first < inf else 0
            raise

    def _send(  # noqa: PLR0917  likewise
        self,
        msg: amqp.Message,
        exchange: str,
        routing_key: str,
        mandatory: bool,
        immediate: bool,
        timeout: float,
    ) -> None:
        durable = msg.properties.get("delivery_mode") == _DURABLE
        if durable and not self._confirm_selected:
            self.confirm_select()
        self._published += 1
        mandatory = durable and (mandatory or not exchange)  # what is not durable waits for nobody
        self._basic_publish(msg, exchange, routing_key, mandatory, immediate, timeout)
        if durable:
            self._unconfirmed.add(self._published)

    @contextmanager
    def _bounded(self, timeout: float | None) -> Iterator[float]:
        """A time for what is in here, and one kind of error; gives the time."""
        if self.connection is None:  # lost meanwhile; Kombu tries another
            raise RecoverableConnectionError("the connection of this channel is closed")
        seconds = timeout or self.connection.confirm_timeout_s
        with refusals_named(), self._whole(), self.connection.patience(seconds):
            yield seconds

    @contextmanager
    def _whole(self) -> Iterator[None]:
        """After half a frame, or a message that no queue took, nothing goes on as before."""
        try:
            yield
        except RecoverableConnectionError:
            if self.connection is not None:
                self.connection.collect()
            raise
        if self._refusals:
            # What was declared may be gone: look again before the next message.
            self.connection.client.declared_entities.clear()
            why, self._refusals = "; ".join(sorted({*self._refusals})), []
            raise Refused(why)

    def _await_confirmations(self) -> None:
        while self._unconfirmed:
            if self.connection is None:
                raise RecoverableConnectionError("the connection was closed")
            self.connection.drain_events()

    def _on_basic_ack(self, delivery_tag: int, multiple: bool) -> None:
        self._settled(delivery_tag, multiple)
        super()._on_basic_ack(delivery_tag, multiple)

    def _on_basic_nack(self, delivery_tag: int, multiple: bool) -> None:
        if refused := self._settled(delivery_tag, multiple):
            self._refuse("the server could not keep it (basic.nack)", refused)
        super()._on_basic_nack(delivery_tag, multiple)

    def _settled(self, tag: int, multiple: bool) -> set[int]:
        """Those that were waited for."""
        of = {one for one in self._unconfirmed if one == tag or (multiple and one < tag)}
        self._unconfirmed -= of
        return of

    def _on_basic_return(
        self, reply_code: int, reply_text: str, exchange: str, routing_key: str, message: Any
    ) -> None:
        if self.events.get("basic_return"):
            super()._on_basic_return(reply_code, reply_text, exchange, routing_key, message)
        else:
            to = f"from exchange {exchange!r} to {routing_key!r}" if exchange else repr(routing_key)
            # One of these; which, is not said.
            self._refuse(f"no queue: {to} ({reply_code} {reply_text})", self._unconfirmed)

    def _refuse(self, why: str, tags: set[int]) -> None:
        self._first_refused = min({self._first_refused, *tags})
        self._refusals.append(why)

"""The short way to Valkey: a message's JSON from a stencil, and one round trip for all there is."""

from __future__ import annotations

import os
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property
from typing import Any

import redis
from kombu.exceptions import OperationalError
from pydantic_core import to_json

from umbel.jobs.wire import new_id
from umbel.producers.express import BODY, LATER, Express, Lineage, Parcel, Quoted, stencil
from umbel.routing.drawer import Letter
from umbel.routing.valkey import Leased, Outlet


class LeasedExpress(Express):
    """The short way out where messages wait in Valkey's lists."""

    def __init__(self, app: Any, open: Callable[[], bool]) -> None:
        super().__init__(app, open)
        self._idle: deque[Outlet] = deque()
        os.register_at_fork(after_in_child=self._idle.clear)

    def _reaches(self) -> bool:
        """Not where Kombu changes to another server by itself (URLs joined by ``;``)."""
        connection = self._app.connection_for_write()
        alone = len(connection.alt) <= 1 or connection.transport_cls == "sentinel"
        return alone and isinstance(connection.transport, Leased)

    @cached_property
    def _tries(self) -> int:
        """Once more, at once: an idle connection may have been closed."""
        return 2 if self._app.conf.task_publish_retry else 1

    def _prepared(self, headers: dict[str, Any], queue: str) -> tuple[bytes, bytes]:
        """The stencils of headers and properties."""
        properties = {"correlation_id": LATER, "reply_to": LATER}
        whole = {**properties, **_properties(2, "", queue, LATER)}
        return stencil(headers), stencil(whole)

    def _filled(
        self, prepared: tuple[bytes, bytes], parcel: Parcel, lineage: Lineage, quoted: Quoted
    ) -> bytes:
        del lineage  # it is quoted
        headers, properties = prepared
        cause = () if parcel.causation_id is None else (to_json(parcel.causation_id),)
        headers %= (
            quoted.job_id,
            quoted.root_id,
            quoted.parent_id,
            quoted.shown,
            to_json(parcel.ignore_result),
            to_json(parcel.correlation_id),
            *cause,
            to_json(parcel.produced_at),
            to_json(parcel.tracked),
        )
        if parcel.more:
            headers = headers[:-1] + b"," + to_json(parcel.more)[1:]
        properties %= (quoted.job_id, to_json(self._app.thread_oid), to_json(new_id()))
        return _message(BODY % parcel.payload, headers, properties)

    def _of(self, letter: Letter, queue: str) -> bytes:
        properties = {**letter.properties, **_properties(2, "", queue, new_id())}
        return _message(letter.body, to_json(letter.headers), to_json(properties))

    def _push(
        self, queue: str, first: str, messages: Sequence[bytes], events: list[bytes]
    ) -> Iterator[int]:
        also = [self._announcement(events, tag=first)] if events else []
        try:
            outlet = self._idle.pop()  # one that no other thread has now
        except IndexError:
            outlet = Outlet(self._app.connection_for_write())
        try:
            for left in reversed(range(self._tries)):
                try:
                    outlet.push(queue, messages, *also)
                    break
                except (redis.RedisError, OSError) as error:
                    if not left:
                        raise OperationalError(str(error)) from error
        finally:
            self._idle.append(outlet)
        yield len(messages)

    def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop().close()

    def _announcement(self, events: list[bytes], tag: str) -> tuple[str, str, bytes]:
        """Of all: exchange, routing key, message."""
        exchange = self._events.exchange.name
        routing_key, body = self._together(events)
        properties = _event_properties(exchange, routing_key) % to_json(tag)
        return exchange, routing_key, _message(body, to_json(self._events.headers), properties)


def _properties(mode: int, exchange: str, routing_key: str, tag: str) -> dict[str, Any]:
    return {
        "delivery_mode": mode,
        "delivery_info": {"exchange": exchange, "routing_key": routing_key},
        "delivery_tag": tag,
        "priority": 0,
        "body_encoding": "base64",
    }


@cache
def _event_properties(exchange: str, routing_key: str) -> bytes:
    return stencil(_properties(1, exchange, routing_key, LATER))


def _message(body: bytes, headers: bytes, properties: bytes) -> bytes:
    """Kombu's envelope, as its virtual transports write it."""
    return (
        b'{"body":"%b","content-encoding":"utf-8","content-type":"application/json",'
        b'"headers":%b,"properties":%b}' % (b64encode(body), headers, properties)
    )

"""The Kombu transport for Valkey and Redis: Kombu's own, made safe against what arrives.

Same lists, same messages: a plain Celery producer or worker shares a queue with ours, and Flower
sees the queues. What is different: an element that is no Kombu message is delivered as raw bytes
(stock Kombu ends the worker or loses it), and the embedded server is brought back when it is gone.
"""

from __future__ import annotations

import base64
import binascii
from queue import Empty
from typing import Any
from uuid import uuid4

import kombu
import redis
from kombu import connection
from kombu.transport import redis as kombu_redis
from kombu.utils.collections import HashedSeq
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import loads
from redis.backoff import NoBackoff
from redis.retry import Retry

from umbel.config.embedded import EmbeddedConnection

RAW_HEADER = "umbel-raw"
"""Set on the delivery of an element that was no Kombu message; its body is the element."""


class Channel(kombu_redis.Channel):
    """Kombu's channel, with one reader for whatever is in a list."""

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
            self._flush_brpop_reauth()  # type: ignore[no-untyped-call]

    def _get(self, queue: str, timeout: float | None = None) -> dict[str, Any]:
        with self.conn_or_acquire() as client:
            for priority in self.priority_steps:
                element = client.rpop(self._q_for_pri(queue, priority))  # type: ignore[no-untyped-call]
                if element is not None:
                    return read_element(element, queue)
        raise Empty

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        params: dict[str, Any] = super()._connparams(asynchronous)  # type: ignore[no-untyped-call]
        # redis-py would try ten times with growing pauses; how often a send is tried again is
        # Celery's to say (task_publish_retry_policy).
        params["retry"] = Retry(NoBackoff(), 0)
        connection_class = params["connection_class"]
        if connection_class is redis.UnixDomainSocketConnection:
            params["connection_class"] = EmbeddedConnection
        elif issubclass(connection_class, redis.UnixDomainSocketConnection):
            params["connection_class"] = type("C", (connection_class, EmbeddedConnection), {})
        return params


class Transport(kombu_redis.Transport):
    """Kombu's transport with that channel."""

    Channel = Channel


class _OurTransport:
    """For connections: our transport where Kombu's URL means its own for Redis.

    The URL stays as it is, because Flower's broker page knows only Kombu's schemes; and it is the
    effective one of each connection, so that reading and writing may differ.
    """

    def get_transport_cls(self) -> Any:
        """Called by Kombu when the transport is first needed."""
        known = super().get_transport_cls()  # type: ignore[misc]  # of Kombu's connection
        return Transport if known is kombu_redis.Transport else known

    def __eqhash__(self) -> Any:
        """Kombu's pools are shared by what this says: not with a plain app of the same URL."""
        return HashedSeq(super().__eqhash__(), Transport)  # type: ignore[misc]


class Connection(_OurTransport, kombu.Connection):
    """What `Umbel` connects with."""

    def Pool(self, limit: int | None = None, **_: Any) -> ConnectionPool:  # noqa: N802  Kombu's name
        """A pool of the same kind."""
        return ConnectionPool(self, limit)  # type: ignore[no-untyped-call]


class PooledConnection(_OurTransport, connection.PooledConnection):
    """One of a pool."""


class ConnectionPool(connection.ConnectionPool):
    """Kombu's pool, whose connections are ours too."""

    def new(self) -> PooledConnection:
        """One more."""
        facts = dict(self.connection._info(resolve=False))
        return PooledConnection(self, **facts)  # type: ignore[no-untyped-call]


def read_element(element: bytes, queue: str) -> dict[str, Any]:
    """A list's element as a Kombu message; what is none becomes the body of a raw one."""
    try:
        message = loads(bytes_to_str(element))
        if _is_kombu_message(message):
            return dict(message)
    except (ValueError, RecursionError):
        pass
    return raw_delivery(element, queue)


def raw_delivery(element: bytes, queue: str) -> dict[str, Any]:
    """A Kombu message around bytes that came without one."""
    return {
        "body": base64.b64encode(element).decode(),
        "content-type": "application/octet-stream",
        "content-encoding": "binary",
        "headers": {RAW_HEADER: True},
        "properties": {
            "body_encoding": "base64",
            "delivery_mode": 2,
            "delivery_tag": str(uuid4()),
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }


def _is_kombu_message(message: Any) -> bool:
    """Whether there is all that Kombu relies on to read it and to find its way back."""
    if not isinstance(message, dict) or not isinstance(message.get("properties"), dict):
        return False
    properties, headers = message["properties"], message.get("headers")
    info = properties.get("delivery_info")
    return (
        isinstance(properties.get("delivery_tag"), str)
        and isinstance(info, dict)
        and isinstance(info.get("exchange"), str)
        and isinstance(info.get("routing_key"), str)
        and isinstance(properties.get("priority", 0), int)
        and (headers is None or isinstance(headers, dict))
        and _is_text_or_none(message.get("content-type"))
        and _is_text_or_none(message.get("content-encoding"))
        and _has_readable_body(message.get("body"), properties.get("body_encoding"))
    )


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _has_readable_body(body: Any, encoding: Any) -> bool:
    if not isinstance(body, str):
        return False
    if encoding is None:
        return True
    if encoding != "base64":
        return False
    try:
        base64.b64decode(body)
    except (binascii.Error, ValueError):
        return False
    return True

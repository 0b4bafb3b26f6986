"""Connections that choose our transports by what Kombu makes of their URL."""

from __future__ import annotations

from typing import Any

import kombu
from kombu import connection
from kombu.transport import pyamqp
from kombu.transport import redis as kombu_redis
from kombu.utils.collections import HashedSeq

from umbel.routing import rabbitmq
from umbel.routing.valkey import transport as valkey

_OURS = {
    kombu_redis.Transport: valkey.Transport,
    kombu_redis.SentinelTransport: valkey.SentinelTransport,
    pyamqp.Transport: rabbitmq.Transport,
    pyamqp.SSLTransport: rabbitmq.SSLTransport,
}


class _OurTransport:
    """For connections: our transport where Kombu's URL means its own for the same broker.

    The URL stays as it is, because Flower's broker page knows only Kombu's schemes; and it is the
    effective one of each connection, so that reading and writing may differ.
    """

    def get_transport_cls(self) -> Any:
        """Called by Kombu when the transport is first needed."""
        known = super().get_transport_cls()  # type: ignore[misc]  # of Kombu's connection
        return _OURS.get(known, known)

    def __eqhash__(self) -> Any:
        """Kombu's pools are shared by what this says: not with a plain app of the same URL."""
        return HashedSeq(super().__eqhash__(), _OurTransport)  # type: ignore[misc]


class Connection(_OurTransport, kombu.Connection):
    """What `Umbel` connects with."""

    def Pool(self, limit: int | None = None, **_: Any) -> ConnectionPool:  # noqa: N802  Kombu's name
        """A pool of the same kind."""
        return ConnectionPool(self, limit)


class PooledConnection(_OurTransport, connection.PooledConnection):
    """One of a pool."""


class ConnectionPool(connection.ConnectionPool):
    """Kombu's pool, whose connections are ours too."""

    def new(self) -> PooledConnection:
        """One more."""
        facts = dict(self.connection._info(resolve=False))
        return PooledConnection(self, **facts)

"""Connections to the server that keeps what is known of jobs: Valkey or Redis.

Only connections: the keys belong to those who use them (`umbel.jobs.records`,
`umbel.consumers.deadletters`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
import redis.asyncio
import redis.asyncio.sentinel
import redis.sentinel
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ExponentialBackoff
from redis.retry import Retry

from umbel.config.embedded import AsyncEmbeddedConnection, Embedded, EmbeddedConnection
from umbel.config.errors import SettingsError, StoreRequired
from umbel.config.settings import Settings

# Only for connections that were refused or cut: an idle one may have been closed, a server may be
# starting again. A server that does not answer is not asked twice: its time is the caller's.
_PAUSES, _RETRIES = ExponentialBackoff(cap=0.4, base=0.05), 3

# Every follower of a job holds a connection. redis-py 8.1 itself stops at 100, and at
# that limit it is the established subscriptions that fail; the server has one (`maxclients`).
_MOST_CONNECTIONS = 10_000

_CELERY_SCHEMES = {"valkey": "redis", "valkeys": "rediss"}


def server_url(url: str) -> str:
    """A URL as Celery, Kombu and Flower know it.

    Args:
        url: any that the settings allow; several may be joined by ``;`` for failover.
    """
    if url.startswith("embedded://"):
        return Embedded.at(url).url
    scheme, separator, rest = url.partition("://")
    return _CELERY_SCHEMES.get(scheme, scheme) + separator + rest


def store_url(settings: Settings, broker_url: str) -> str | None:
    """Where the state of jobs is: what is named, else the broker's own server if it can."""
    url = server_url(settings.store_url or broker_url)
    if url.startswith("sentinel://"):
        return url
    url = url.split(";")[0]
    return url if urlsplit(url).scheme in {"redis", "rediss", "redis+socket"} else None


def split_master(url: str) -> tuple[str, str | None]:
    """A Sentinel URL as Kombu and Celery know it, and the name of the master that it asks for.

    >>> split_master("sentinel://a:26379/0;sentinel://b:26379?master_name=main")
    ('sentinel://a:26379/0;sentinel://b:26379', 'main')
    """
    if not url.startswith("sentinel://"):
        return url, None
    parts = [part.partition("?") for part in url.split(";")]
    names = [name for _, _, query in parts for name in parse_qs(query).get("master_name", ())]
    return ";".join(plain for plain, _, _ in parts), names[0] if names else None


class Store:
    """Clients for one server, one for each way of calling.

    Safe in threads and after a fork: redis-py's pools notice both.
    """

    def __init__(self, url: str, timeout_s: float) -> None:
        self.url = url
        self._options: dict[str, Any] = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "decode_responses": True,
        }
        self._async_clients: dict[
            asyncio.AbstractEventLoop, tuple[redis.asyncio.Redis, AsyncGenerator[None, None]]
        ] = {}

    @cached_property
    def client(self) -> redis.Redis:
        """The blocking client."""
        retry = Retry(_PAUSES, _RETRIES, (redis.ConnectionError,))
        if self.url.startswith("sentinel://"):
            sentinels, master = self._sentinels(redis.sentinel.Sentinel)
            found: redis.Redis = sentinels.master_for(master, retry=retry)
            return found
        if path := self._socket_path:
            pool = redis.ConnectionPool(
                connection_class=EmbeddedConnection,
                path=path,
                db=self._socket_database,
                retry=retry,
                **self._options,
            )
            return redis.Redis(connection_pool=pool)
        return redis.Redis.from_url(self.url, retry=retry, **self._options)

    async def async_client(self) -> redis.asyncio.Redis:
        """The client of the running event loop, closed when that ends."""
        loop = asyncio.get_running_loop()
        if loop not in self._async_clients:
            client = self._new_async_client()
            closing = self._closed_with(loop, client)
            self._async_clients[loop] = client, closing
            await anext(closing)
        return self._async_clients[loop][0]

    async def _closed_with(
        self, loop: asyncio.AbstractEventLoop, client: redis.asyncio.Redis
    ) -> AsyncGenerator[None, None]:
        """A loop has no hook for its end, but `asyncio.run` finishes the open generators."""
        try:
            yield
        finally:
            del self._async_clients[loop]
            await client.aclose(close_connection_pool=True)
            sentinels = getattr(client.connection_pool, "sentinel_manager", None)
            for sentinel in sentinels.sentinels if sentinels else ():
                await sentinel.aclose()

    def _new_async_client(self) -> redis.asyncio.Redis:
        retry = AsyncRetry(_PAUSES, _RETRIES, (redis.ConnectionError,))
        if self.url.startswith("sentinel://"):
            sentinels, master = self._sentinels(redis.asyncio.sentinel.Sentinel)
            found: redis.asyncio.Redis = sentinels.master_for(
                master, retry=retry, max_connections=_MOST_CONNECTIONS
            )
            return found
        if path := self._socket_path:
            pool = redis.asyncio.ConnectionPool(
                connection_class=AsyncEmbeddedConnection,
                path=path,
                db=self._socket_database,
                retry=retry,
                max_connections=_MOST_CONNECTIONS,
                **self._options,
            )
            return redis.asyncio.Redis(connection_pool=pool)
        return redis.asyncio.Redis.from_url(
            self.url, retry=retry, max_connections=_MOST_CONNECTIONS, **self._options
        )

    def _sentinels(self, kind: Any) -> tuple[Any, str]:
        """Who knows the master, and its name; user, password and database are the first URL's."""
        plain, master = split_master(self.url)
        if master is None:
            raise SettingsError(
                f"{plain}: which master? sentinel://host:26379/0?master_name=mymaster"
            )
        urls = [urlsplit(one) for one in plain.split(";")]
        options = {
            **self._options,
            "db": int(urls[0].path.strip("/") or 0),
            "username": urls[0].username,
            "password": urls[0].password and unquote(urls[0].password),
        }
        return kind([(one.hostname, one.port or 26379) for one in urls], **options), master

    @property
    def _socket_path(self) -> str | None:
        parts = urlsplit(self.url)
        return str(Path(parts.path)) if parts.scheme == "redis+socket" else None

    @property
    def _socket_database(self) -> int:
        return int(parse_qs(urlsplit(self.url).query).get("virtual_host", ["0"])[0])


def required(store: Store | None, what: str) -> Store:
    """The store, or the error that says what needs it."""
    if store is None:
        raise StoreRequired(
            f"{what} needs a state store, and this broker cannot be one: set UMBEL_STORE_URL "
            "(or store_url=) to a Valkey or Redis server, redis://host:6379/0"
        )
    return store

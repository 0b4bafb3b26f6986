"""What the chaos asks of any broker: how much and what it holds, and to cut somebody off."""

from __future__ import annotations

import json
import re
from base64 import b64decode
from collections.abc import Iterable
from contextlib import suppress
from urllib.error import HTTPError
from urllib.parse import quote

import psutil
from redis import Redis
from support.servers import RabbitMQ, Server, Valkey

PRIORITIES = ("", "\x06\x163", "\x06\x166", "\x06\x169")
"""What Kombu appends to the name of a ready list."""


def held(broker: Server, queue: str) -> int:
    """Messages that wait in a queue or are in somebody's hands."""
    if isinstance(broker, RabbitMQ):
        return sum(broker.counts(queue))
    assert isinstance(broker, Valkey)
    with broker.client() as client:
        waiting = sum(client.llen(f"{queue}{priority}") for priority in PRIORITIES)
        claimed = sum(client.hlen(key) for key in client.keys("_umbel.claims.*"))
        return int(waiting + claimed + client.hlen("unacked"))


def kept(broker: Server) -> set[int]:
    """Numbers of the jobs whose message is anywhere on the broker: in a queue, in what was taken
    and not acknowledged, in whatever else there is. Ask when no worker lives any more."""
    if isinstance(broker, RabbitMQ):
        queues = [queue["name"] for queue in broker.api("GET", f"queues/{broker.vhost}")]
        bodies = (message.body for queue in queues for message in broker.waiting(queue))
    else:
        assert isinstance(broker, Valkey)
        with broker.client() as client:
            values = [value for key in client.scan_iter() for value in _values(client, key)]
        bodies = (b64decode(body) for value in values for body in _BODY.findall(value))
    return {number for body in bodies if (number := _number(body)) is not None}


_BODY = re.compile(rb'"body\\*": ?\\*"([A-Za-z0-9+/=]+)')
"""Of a message in Kombu's form, in a list or inside of another document."""


def _values(client: Redis, key: bytes) -> Iterable[bytes]:
    match client.type(key):
        case b"list":
            return client.lrange(key, 0, -1)
        case b"hash":
            return client.hvals(key)
        case b"zset":
            return client.zrange(key, 0, -1)
        case b"set":
            return client.smembers(key)
        case b"string":
            return [client.get(key)]
    raise AssertionError(f"a {client.type(key)} in {key!r} is new")


def _number(body: bytes) -> int | None:
    """Of a message of either subject's jobs; None if it is another's."""
    match json.loads(body):
        case [[{"number": number}] | [int(number), *_], *_]:
            return number
    return None


def cut(broker: Server, processes: Iterable[psutil.Process]) -> None:
    """Have the broker close all connections of these processes."""
    ports = {
        connection.laddr.port
        for process in processes
        for connection in process.net_connections(kind="tcp")
    }
    if isinstance(broker, RabbitMQ):
        for connection in broker.api("GET", "connections"):
            if connection.get("peer_port") in ports:
                with suppress(HTTPError):  # it has gone meanwhile
                    broker.api("DELETE", f"connections/{quote(connection['name'], safe='')}")
        return
    assert isinstance(broker, Valkey)
    with broker.client() as client:
        for connection in client.client_list():
            if int(connection["addr"].rpartition(":")[2]) in ports:
                client.client_kill_filter(_id=connection["id"])

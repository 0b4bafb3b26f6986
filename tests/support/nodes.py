"""pytest-celery on local processes: its clusters, nodes and setup, and never a Docker daemon."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any, ClassVar, NoReturn
from uuid import uuid4

import pytest
from pytest_celery import (
    ALL_CELERY_BACKENDS,
    ALL_CELERY_BROKERS,
    CeleryTestBackend,
    CeleryTestBroker,
    CeleryTestWorker,
    CeleryWorkerContainer,
    RabbitMQContainer,
    RedisContainer,
)

from support.process import LocalProcess
from support.servers import RabbitMQ, Valkey
from support.workers import FAST


class LocalContainer:
    """What pytest-celery's wrappers ask of a Docker container, answered by a process."""

    # No networks and no published ports: nothing for the wrapper's `ready()` to look up.
    attrs: ClassVar = {"Config": {"Env": []}, "NetworkSettings": {"Networks": {}, "Ports": {}}}

    def __init__(self, process: LocalProcess, id: str | None = None) -> None:
        self.process, self.id, self.name = process, id or uuid4().hex, process.name

    @property
    def status(self) -> str:
        return "running" if self.process.running else "exited"

    def reload(self) -> None:
        """Nothing is cached."""

    def logs(self) -> bytes:
        return self.process.logs().encode()

    def kill(self, signal_: str | int | None = None) -> None:
        """Signal the main process; as in Docker, SIGKILL takes the others along."""
        number = getattr(signal, signal_) if isinstance(signal_, str) else signal_ or signal.SIGKILL
        self.process.signal(number)
        if number == signal.SIGKILL:
            self.process.close()

    def restart(self, timeout: float = 10) -> None:
        self.process.restart(timeout)


class ReadyByProcess:
    """Readiness of the last start; the stock wait reads all logs, once a second."""

    _container: LocalContainer

    @property
    def process(self) -> LocalProcess:
        return self._container.process

    def _wait_ready(self, timeout: int = 30) -> bool:
        self.process.wait_until_ready(timeout)
        return True


class ValkeyContainer(ReadyByProcess, RedisContainer):
    """A Valkey server behind pytest-celery's Redis nodes."""

    url = host_url = property(lambda self: self.process.url)
    hostname = property(lambda self: "127.0.0.1")
    port = property(lambda self: self.process.port)


class RabbitMQLocalContainer(ReadyByProcess, RabbitMQContainer):
    """The shared RabbitMQ node, in the test's vhost, behind pytest-celery's RabbitMQ nodes."""

    url = host_url = property(lambda self: self.process.url)
    hostname = property(lambda self: "127.0.0.1")
    port = property(lambda self: self.process.port)
    vhost = property(lambda self: self.process.vhost)


class LocalWorkerContainer(ReadyByProcess, CeleryWorkerContainer):
    """pytest-celery's own worker app, with one child and without the waits at start."""

    @classmethod
    def command(cls, *args: str, **kwargs: Any) -> list[str]:
        return super().command("-c", "1", *FAST, *args, **kwargs)


class LocalWorker(CeleryTestWorker):
    """The worker node; its process list holds its own session only."""

    def get_running_processes_info(
        self, columns: list[str] | None = None, filters: dict[str, str] | None = None
    ) -> list[dict[str, Any]]:
        wanted = (filters or {}).items()
        columns = columns or ["pid", "name", "username", "cmdline", "cpu_percent", "create_time"]
        infos = [member.as_dict(columns) for member in self.container.process.members()]
        return [info for info in infos if wanted <= info.items()]


@pytest.fixture(scope="session")
def docker_client() -> NoReturn:
    """Refuses: a fixture that gets here starts a container instead of a local process."""
    pytest.fail("tests run without Docker: override this container in tests/support/nodes.py")


# pytest-celery's parameters are sets: unsorted, xdist's workers collect different tests.
@pytest.fixture(params=sorted(ALL_CELERY_BROKERS))
def celery_broker(request: pytest.FixtureRequest) -> Iterator[CeleryTestBroker]:
    broker = request.getfixturevalue(request.param)
    yield broker
    broker.teardown()


@pytest.fixture(params=sorted(ALL_CELERY_BACKENDS))
def celery_backend(request: pytest.FixtureRequest) -> Iterator[CeleryTestBackend]:
    backend = request.getfixturevalue(request.param)
    yield backend
    backend.teardown()


@pytest.fixture
def default_redis_broker(start_valkey: Callable[..., Valkey]) -> ValkeyContainer:
    return ValkeyContainer(LocalContainer(start_valkey()))


@pytest.fixture
def default_redis_backend(start_valkey: Callable[..., Valkey]) -> ValkeyContainer:
    return ValkeyContainer(LocalContainer(start_valkey()))


@pytest.fixture
def default_rabbitmq_broker(rabbitmq: RabbitMQ) -> RabbitMQLocalContainer:
    return RabbitMQLocalContainer(LocalContainer(rabbitmq))


@pytest.fixture
def default_worker_cls() -> type[CeleryTestWorker]:
    return LocalWorker


@pytest.fixture
def default_worker_container_cls() -> type[CeleryWorkerContainer]:
    return LocalWorkerContainer


@pytest.fixture(scope="session")
def default_worker_container_session_cls() -> type[CeleryWorkerContainer]:
    return LocalWorkerContainer


@pytest.fixture
def default_worker_container(
    tmp_path: Path,
    default_worker_container_cls: type[CeleryWorkerContainer],
    default_worker_command: list[str],
    default_worker_env: dict[str, str],
    default_worker_initial_content: dict[str, bytes],
) -> Iterator[CeleryWorkerContainer]:
    """The volume's files in a directory, and the container's command run on them."""
    id = uuid4().hex
    cwd = tmp_path / f"worker-{id[:12]}"
    for name, content in default_worker_initial_content.items():
        file = cwd / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    for package in ("pytest_celery", "pytest_celery/vendors", "pytest_celery/vendors/worker"):
        if (cwd / package).exists():  # the copied tasks alone, not all of the plug-in: 0.3 s less
            (cwd / package / "__init__.py").touch()
    bin_dir = Path(sys.executable).parent
    env = default_worker_env | {"PYTHONPATH": str(cwd), "PATH": f"{bin_dir}:{os.environ['PATH']}"}
    # The node expects the worker's host to be the container's.
    command = [part.replace("%h", id[:12]) for part in default_worker_command]
    worker = LocalProcess(name=cwd.name, command=command, cwd=cwd, env=env, ready="ready.")
    with closing(worker):
        worker.start()
        yield default_worker_container_cls(LocalContainer(worker, id))

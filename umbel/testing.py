"""For the tests of those who use Umbel: pytest fixtures, loaded by installing it.

    def test_thumbnails_are_asked_for(umbel_sent):
        shop.upload("cat.jpg")
        assert umbel_sent.of(shop.resize) == [ResizeImage(source=..., widths=[150])]

    def test_thumbnails_are_made(umbel_worker):
        with umbel_worker(shop.app):
            assert shop.resize.request(ResizeImage(...)).result(10).files

A job called inline, ``shop.resize(message)``, needs none of them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import pytest

if TYPE_CHECKING:
    from umbel.app import Umbel
    from umbel.jobs.contracts import Message
    from umbel.jobs.job import Job

    M = TypeVar("M", bound=Message)

WorkerFixture = Callable[..., AbstractContextManager[None]]


@dataclass
class Sent:
    """What was sent in a test, in order; nothing reaches a broker.

    Attributes:
        messages: each job's name with its checked message.
    """

    messages: list[tuple[str, Message]] = field(default_factory=list)

    def of(self, job: Job[M, Any, Any]) -> list[M]:
        """The messages that were sent to one job."""
        return [
            message
            for name, message in self.messages
            if name == job.name and isinstance(message, job.contract)
        ]


class _NoRecords:
    """In place of the records of jobs and sagas, while nothing runs."""

    def begin(self, saga: Any) -> Any:
        """A saga sends its first step."""
        self._saga = saga
        return saga

    def move(self, _key: str, change: Callable[[Any], bool]) -> Any:
        """And waits for ever."""
        change(self._saga)
        return self._saga

    def queued(self, _job_id: str, _name: str) -> None:
        """There is none to be kept."""

    def __getattr__(self, name: str) -> Any:
        from umbel.config.errors import StoreRequired  # noqa: PLC0415

        raise StoreRequired("umbel_sent keeps what is sent and runs nothing; see umbel_worker")


@pytest.fixture
def umbel_sent(monkeypatch: pytest.MonkeyPatch) -> Sent:
    """Sends are checked against their contracts and kept instead of published.

    `send`, `request`, `send_task` and Celery's `delay` end here. The handle of a `request` has an
    id and nothing more: asking it is a `StoreRequired`, since no job runs.
    """
    from celery import Celery  # noqa: PLC0415  a plug-in must not slow every pytest run

    from umbel.app import Umbel  # noqa: PLC0415

    sent = Sent()

    def keep(self: Umbel, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        if job := self.jobs.get(name):
            (payload,), options = self.sender.outgoing(job, args, kwargs, options)
            sent.messages.append((name, job.contract.received(payload)))
        return self.AsyncResult(options.get("task_id") or name)

    monkeypatch.setattr(Umbel, "send_task", keep)
    monkeypatch.setattr(Umbel, "records", _NoRecords())
    monkeypatch.setattr(Umbel, "saga_records", _NoRecords())
    monkeypatch.setattr(Celery, "send_task", keep)
    return sent


@pytest.fixture
def umbel_broker(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """An embedded broker of the test's own; its URL, also in ``UMBEL_BROKER_URL``."""
    from umbel.config.embedded import Embedded  # noqa: PLC0415

    url = f"embedded://{tmp_path_factory.mktemp('umbel')}"
    monkeypatch.setenv("UMBEL_BROKER_URL", url)
    yield url
    Embedded.at(url).release()


@pytest.fixture
def umbel_worker(umbel_broker: str) -> WorkerFixture:
    """Starts a real worker process for an app, as a context manager: ``umbel_worker(app)``.

    The app's module is imported by the worker, so it must be importable from the working
    directory. Its settings are read anew, from this test's broker.
    """
    return _worker


@contextmanager
def _worker(app: Umbel, *arguments: str, timeout_s: float = 30) -> Iterator[None]:
    _forget_connections(app)
    command = [sys.executable, "-m", "celery", "-A", _module_of(app), "worker", "-c", "1"]
    fast = ["--without-mingle", "--without-gossip", *arguments]
    paths = os.pathsep.join(path for path in sys.path if path)
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, *fast],
            env=os.environ | {"PYTHONPATH": paths},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            if not _is_up(app, process, timeout_s):
                log.seek(0)
                said = log.read().decode(errors="replace")
                raise RuntimeError(f"the worker of {app.main} did not start:\n{said}")
            yield
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _forget_connections(app)


def _is_up(app: Umbel, process: subprocess.Popen[bytes], timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not app.control.ping(timeout=0.2):
        if process.poll() is not None or time.monotonic() > deadline:
            return False
    return True


def _module_of(app: Umbel) -> str:
    """Where the worker finds the app; Celery itself holds the current one too."""
    for name, module in list(sys.modules.items()):
        foreign = name == "__main__" or name.partition(".")[0] == "celery"
        if not foreign and any(value is app for value in vars(module).values()):
            return name
    raise RuntimeError(f"no module holds the app {app.main!r}: the worker could not import it")


def _forget_connections(app: Umbel) -> None:
    """Read the settings anew: a test has its own broker."""
    app.close()
    for name in (
        "settings",
        "store",
        "records",
        "saga_records",
        "dead_letters",
        "webhook_log",
        "sender",
        "_express",
        "blobs",
        "amqp",
        "outbox_database",
        "_fallback",
    ):
        app.__dict__.pop(name, None)
    for job in app.jobs.values():
        job.__dict__.pop("plan", None)

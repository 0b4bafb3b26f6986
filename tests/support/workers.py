"""Apps that a test writes to disk, and real `celery worker` processes that run them."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from itertools import count
from pathlib import Path
from textwrap import dedent
from types import ModuleType
from typing import Any
from weakref import WeakSet

import pytest
from celery import Celery, _state
from celery.backends.redis import ResultConsumer

from support.process import RUN_MARK, LocalProcess
from support.servers import Server

# Each waits a second for other workers to answer, and none of our promises rests on them.
FAST = ("--without-mingle", "--without-gossip")

_numbers = count(1)


class Worker(LocalProcess):
    """A `celery -A app worker`, ready to take jobs once started."""

    def __init__(
        self,
        app: str,
        cwd: Path,
        *,
        name: str,
        pool: str = "prefork",
        concurrency: int = 1,
        queues: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        options: Sequence[str] = FAST,
    ) -> None:
        self.node = f"{name}@localhost"
        command = f"-m celery -A {app} worker -n {self.node} -P {pool} -c {concurrency} -l INFO"
        listen = ["-Q", ",".join(queues)] if queues else []
        super().__init__(
            name=name,
            command=[sys.executable, *command.split(), *listen, *options],
            cwd=cwd,
            env={"PYTHONUNBUFFERED": "1"} | dict(env or {}),
            ready=f"{self.node} ready.",
        )


@pytest.fixture
def app_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory for app modules: on `sys.path`, the working directory here and of workers."""
    for name in os.environ:
        if name.startswith(("UMBEL_", "CELERY_")) and name != RUN_MARK:
            monkeypatch.delenv(name)  # a developer's own settings
    directory = tmp_path / "app"
    directory.mkdir()
    monkeypatch.syspath_prepend(directory)
    monkeypatch.chdir(directory)
    return directory


@pytest.fixture
def write_app(
    app_dir: Path, broker: Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., ModuleType]]:
    """Factory `write_app(source, name="shop") -> module`: on disk for workers, imported here.

    UMBEL_BROKER_URL is the test's broker, here and in workers. Each module's name is new, so that
    neither `sys.modules` nor shared tasks carry one test's app into the next.
    """
    monkeypatch.setenv("UMBEL_BROKER_URL", broker.url)
    modules: list[ModuleType] = []
    shared = set(_state._on_app_finalizers)

    def write(source: str, name: str = "shop") -> ModuleType:
        unique = f"{name}_{next(_numbers)}"
        (app_dir / f"{unique}.py").write_text(dedent(source))
        importlib.invalidate_caches()
        modules.append(importlib.import_module(unique))
        return modules[-1]

    yield write
    _state._on_app_finalizers.intersection_update(shared)
    for module in modules:
        del sys.modules[module.__name__]
        for app in {value for value in vars(module).values() if isinstance(value, Celery)}:
            app.close()


_subscribers: WeakSet[ResultConsumer] = WeakSet()
"""Of every thread; an app itself knows the one of the thread that asks."""


@pytest.fixture(autouse=True, scope="session")
def _know_subscribers() -> Iterator[None]:
    init = ResultConsumer.__init__

    def known(self: ResultConsumer, *args: Any) -> None:
        init(self, *args)
        _subscribers.add(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ResultConsumer, "__init__", known)
        yield


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown() -> None:
    """End what results have subscribed to, of every app and thread, while their server is there.

    A result that outlives its test (in a cycle, in a failure's traceback) unsubscribes when it is
    collected, and on a server that is gone that is 19 s of retries in the middle of another test.
    """
    for consumer in list(_subscribers):
        subscribed, consumer._pubsub = consumer._pubsub, None
        if subscribed:
            subscribed.close()


@pytest.fixture
def start_worker(
    app_dir: Path, broker: Server, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Worker]]:
    """Factory `start_worker(app, **options of Worker) -> Worker`, ended with the test.

    `app` is a module from `write_app`, a file, or what `celery -A` takes.
    """
    monkeypatch.setenv("UMBEL_BROKER_URL", broker.url)
    with ExitStack() as workers:

        def start(app: ModuleType | Path | str, **options: Any) -> Worker:
            name = options.pop("name", f"worker{next(_numbers)}")
            if isinstance(app, Path):
                options["env"] = {"PYTHONPATH": str(app.parent)} | options.get("env", {})
            target = app.__name__ if isinstance(app, ModuleType) else getattr(app, "stem", app)
            worker = workers.enter_context(closing(Worker(target, app_dir, name=name, **options)))
            workers.callback(lambda: print(worker.logs()))  # shown when the test fails
            return worker.start()

        yield start

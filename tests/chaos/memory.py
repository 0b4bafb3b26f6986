"""Memory that is used up: the kernel ends whoever takes more than his group may have."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from support.process import eventually
from support.workers import Worker

CGROUPS = Path("/sys/fs/cgroup/memory")
"""Where memory is limited (version 1)."""


@contextmanager
def limited_memory(worker: Worker, limit_bytes: int) -> Iterator[Path | None]:
    """The kernel kills the worker's largest process beyond the limit while the block runs.

    Yields the group's directory; None where there may be none.
    """
    group = CGROUPS / f"umbel-test-{worker.pid}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
    except OSError:
        yield None
        return
    try:
        for member in worker.members():
            _move(member.pid, group)
        yield group
    finally:
        eventually(lambda: _dissolved(group), 10, "the end of the group")


def _move(pid: int, group: Path) -> None:
    with suppress(ProcessLookupError):  # it has ended
        (group / "cgroup.procs").write_text(str(pid))


def _dissolved(group: Path) -> bool:
    for pid in (group / "cgroup.procs").read_text().split():
        _move(int(pid), CGROUPS)
    with suppress(OSError):
        group.rmdir()
    return not group.exists()

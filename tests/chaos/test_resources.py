"""Memory and disks that are used up."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.process import eventually
from support.workers import Worker

from chaos.memory import limited_memory
from umbel import JobFailed
from umbel.consumers.deadletters import Reason


def test_out_of_memory(scene):
    """The kernel kills the child: its job is tried again and dead-lettered, others go on."""
    [worker] = scene.start_workers(1)
    with limited_memory(worker, 300 << 20) as limited:
        hungry = scene.send(tracked=True, job=scene.app.hungry)
        others = [scene.send(0.2, tracked=True) for _ in range(8)]
        with pytest.raises(JobFailed, match="SIGKILL"):
            hungry.handle.result(30)
        assert all(other.handle.result(20) for other in others)
        assert worker.running
        if limited:
            assert "oom_kill 2" in (limited / "memory.oom_control").read_text()
    [letter] = scene.app.app.dead_letters.newest(9)
    assert letter.reason is Reason.CRASHED
    tally = scene.tally()
    assert len(tally.runs[hungry.number]) == 2
    assert not tally.twice


@contextmanager
def small_disk(directory: Path, worker: Worker) -> Iterator[None]:
    """Files of half a megabyte do not fit while the block runs, as on a disk that is full."""
    if os.geteuid() == 0:
        ballast = directory / "ballast"
        ballast.write_bytes(bytes((1 << 20) - 4096 * 4))
        yield
        ballast.unlink()
        return
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    for member in worker.members():
        resource.prlimit(member.pid, resource.RLIMIT_FSIZE, (500_000, most))
    yield
    for member in worker.members():
        resource.prlimit(member.pid, resource.RLIMIT_FSIZE, (most, most))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of a megabyte; where it takes root to have one, a directory."""
    directory = tmp_path / "disk"
    directory.mkdir()
    if os.geteuid() != 0:
        yield directory
        return
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", directory], check=True)
    yield directory
    subprocess.run(["umount", directory], check=True)


def test_a_full_disk(set_scene, disk):
    """A file that cannot be stored is a failure like any, and leaves nothing behind; a job with a
    policy outlasts it."""
    scene = set_scene(env={"UMBEL_BLOB_URL": disk.as_uri()})
    [worker] = scene.start_workers(1)
    with small_disk(disk, worker):
        once = scene.send(tracked=True, job=scene.app.keep_once)
        keep = scene.send(tracked=False, job=scene.app.keep)
        with pytest.raises(JobFailed, match="storing a file in"):
            once.handle.result(20)
        eventually(lambda: len(scene.tally().runs[keep.number]) > 1, 20, "a second attempt")
        # What the next attempt has begun may be there for a moment.
        eventually(lambda: {path.name for path in disk.rglob("*") if path.is_file()} == {"ballast"})
    eventually(lambda: scene.tally().done[keep.number], 20, "the file")
    [letter] = scene.app.app.dead_letters.newest(9)
    assert letter.reason is Reason.FAILED
    assert letter.job_id == once.handle.id
    [stored] = [path for path in disk.rglob("*") if path.is_file()]
    assert stored.stat().st_size == scene.app.FILE_BYTES

"""Who holds a message: as long as it lives, however long the job, and no longer."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from support.process import eventually

from chaos import faults

FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


def test_a_job_of_ten_leases_runs_once(set_scene):
    """On every pool: the heartbeat is nobody's to starve, though solo's loop is the job's."""
    scene = set_scene()
    jobs = []
    for pool in ("prefork", "threads", "solo"):
        scene.start_workers(1, pool=pool, concurrency=1)
        jobs.append(scene.send(10 * scene.lease_s, tracked=True))
        scene.running(jobs[-1])
    spare = scene.start_workers(1)  # would take over at once
    tally = scene.finish(60)
    assert [len(tally.runs[job.number]) for job in jobs] == [1, 1, 1]
    assert not tally.wrong_records
    assert "received" not in spare[0].logs()


def test_a_stopped_worker_loses_its_job_and_is_told(scene):
    """Another does the job; when the first wakes up its run is ended, and the record has the
    other's result."""
    [stopped] = scene.start_workers(1)
    job = scene.send(5, tracked=True)
    first = scene.running(job)
    scene.start_workers(1)
    stopped.freeze()
    eventually(lambda: len(scene.tally().runs[job.number]) == 2, 10, "a second run")
    stopped.thaw()
    stopped.wait_for_log("its jobs are cancelled")
    tally = scene.finish()
    assert not tally.wrong_records
    [first, second] = sorted(tally.runs[job.number], key=lambda run: run.begun_at)
    assert (first.done_at, job.handle.result(1)) == (None, second.id)
    again = scene.send(tracked=True)
    assert again.handle.result(10)


def test_what_a_stopped_worker_says_late_is_refused(scene):
    """A job that cannot be stopped (a thread) ends after another run has begun: its effect is
    there twice, its outcome is the other's."""
    [stopped] = scene.start_workers(1, pool="threads")
    job = scene.send(4, tracked=True)
    scene.running(job)
    scene.start_workers(1, pool="threads")
    stopped.freeze()
    eventually(lambda: len(scene.tally().runs[job.number]) == 2, 10, "a second run")
    stopped.thaw()
    eventually(lambda: scene.tally().done[job.number] == 2, 20, "both runs done")
    tally = scene.finish()
    second = max(tally.runs[job.number], key=lambda run: run.begun_at)
    assert job.handle.result(1) == second.id


@pytest.mark.parametrize("fault", [faults.kill_broker, faults.freeze_broker])
def test_a_broker_away_for_almost_a_lease_costs_nobody_his_job(set_scene, fault):
    """Time in which nobody could be heard counts for nobody."""
    scene = set_scene(lease_s=2)
    scene.start_workers(3)
    jobs = [scene.send(5, tracked=False) for _ in range(4)]
    for job in jobs:
        scene.running(job)
    fault(scene, down_s=1.9)
    tally = scene.finish()
    assert [len(tally.runs[job.number]) for job in jobs] == [1] * 4


@pytest.mark.skipif(FAKETIME is None, reason="apt-get install libfaketime")
def test_a_wrong_clock_does_no_harm(scene):
    """A lease is measured by the server's clock: workers an hour ahead and behind keep their jobs,
    and lose them when they are killed."""
    wrong = {"LD_PRELOAD": str(FAKETIME), "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
    for offset in ("+3600s", "-3600s"):
        scene.start_workers(1, concurrency=1, env={**wrong, "FAKETIME": offset})
    scene.start_workers(1, concurrency=1)
    jobs = [scene.send(4 * scene.lease_s, tracked=True) for _ in range(3)]
    assert len({_parent(scene.running(job).pid) for job in jobs}) == 3
    tally = scene.finish()
    assert not tally.twice
    assert not tally.wrong_records
    job = scene.send(5, tracked=False)
    holder = {worker.pid: worker for worker in scene.workers}[_parent(scene.running(job).pid)]
    killed_at = time.monotonic()
    holder.kill()
    eventually(lambda: len(scene.tally().runs[job.number]) == 2, 20, "the second run")
    assert scene.tally().runs[job.number][-1].begun_at > killed_at


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])

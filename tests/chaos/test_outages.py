"""The broker and the store away in the middle of a job."""

from __future__ import annotations

import os
import signal

import pytest
from support.process import eventually

from chaos import faults
from umbel import JobFailed, JobState
from umbel.consumers.deadletters import Reason


@pytest.fixture
def store(start_valkey):
    """A server for the jobs' records alone."""
    return start_valkey()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_job_that_reports_outlives_the_broker(scene, pool):
    """Progress that nobody can be told, and a flag that nobody can be asked for, end no job."""
    scene.start_workers(1, pool=pool)
    jobs = [scene.send(2, tracked=tracked, job=scene.app.patient) for tracked in (True, False)]
    for job in jobs:
        scene.running(job)
    faults.kill_broker(scene)
    tally = scene.finish()
    assert not tally.twice
    assert not tally.wrong_records
    assert all(len(runs) == 1 for runs in tally.runs.values())


def test_a_job_may_fail_with_our_own_error(scene):
    """A lost connection of the job's own is a failure like any: one run, one dead letter."""
    scene.start_workers(1)
    job = scene.send(tracked=True, job=scene.app.cut_off)
    with pytest.raises(JobFailed, match="the job's own server is down"):
        job.handle.result(10)
    [letter] = scene.app.app.dead_letters.newest(9)
    assert letter.reason is Reason.FAILED
    scene.send()
    eventually(lambda: scene.tally().done, 10, "the next job")
    assert len(scene.tally().runs[job.number]) == 1


def test_a_result_outlives_the_store(set_scene, store):
    """A tracked job that ends while the store is away has its result in the end, and ran once."""
    scene = set_scene(env={"UMBEL_STORE_URL": store.url})
    scene.start_workers(1)
    jobs = [scene.send(1, tracked=tracked) for tracked in (True, False)]
    for job in jobs:
        scene.running(job)
    store.kill()
    eventually(lambda: scene.tally().done.keys() == {1, 2}, 10, "both effects")
    store.start()
    tally = scene.finish()
    assert not tally.twice
    assert not tally.wrong_records


def test_an_end_of_every_kind_outlives_the_store(set_scene, store):
    """A job that fails and one whose process dies while the store is away: each ran as often as
    it should, and its record and its dead letter say how it ended."""
    scene = set_scene(env={"UMBEL_STORE_URL": store.url})
    scene.start_workers(1)
    failing = scene.send(1, tracked=True, job=scene.app.failing)
    deadly = scene.send(3, tracked=True, job=scene.app.fragile)
    scene.running(failing)
    run = scene.running(deadly)
    store.kill()
    os.kill(run.pid, signal.SIGKILL)
    for job in (failing, deadly):
        scene.workers[0].wait_for_log(f"what came of job {job.handle.id} cannot be written now")
    store.start()
    for job, error in ((failing, "for good"), (deadly, "WorkerLostError")):
        with pytest.raises(JobFailed, match=error):
            job.handle.result(20)
        assert len(scene.tally().runs[job.number]) == 1
    reasons = {letter.job_id: letter.reason for letter in scene.app.app.dead_letters.newest(9)}
    assert reasons == {failing.handle.id: Reason.FAILED, deadly.handle.id: Reason.CRASHED}


def test_what_waits_for_the_store_is_not_lost(set_scene, store):
    """A tracked job that cannot begin without the store is put off, and one that needs no store
    is done."""
    scene = set_scene(env={"UMBEL_STORE_URL": store.url})
    waiting = [scene.send(tracked=True) for _ in range(4)]
    free = scene.send(tracked=False)
    store.kill()
    [worker] = scene.start_workers(1)
    eventually(lambda: scene.tally().done[free.number], 10, "the job that needs no store")
    worker.wait_for_log("the state store does not answer")
    store.start()
    tally = scene.finish()
    assert not tally.twice
    assert not tally.wrong_records
    assert {job.handle.state() for job in waiting} == {JobState.SUCCEEDED}

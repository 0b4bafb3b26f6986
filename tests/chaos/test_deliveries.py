"""What counts as a run without an outcome, and what comes of too many."""

from __future__ import annotations

import json

import pytest
from support.process import eventually
from support.workers import FAST

from chaos import faults
from umbel import JobFailed
from umbel.consumers.deadletters import Reason


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_a_job_that_kills_its_worker_ends_as_a_dead_letter(scene, pool):
    """After `max_deliveries` runs; its neighbours, which it kept from being done, are done."""
    workers = scene.start_workers(5, pool=pool, concurrency=1)
    deadly = scene.send(tracked=True, job=scene.app.deadly)
    neighbours = [scene.send(0.2, tracked=True) for _ in range(8)]
    with pytest.raises(JobFailed, match="3 workers died in the middle of it"):
        deadly.handle.result(40)
    assert all(neighbour.handle.result(20) for neighbour in neighbours)
    [letter] = scene.app.app.dead_letters.newest(9)
    assert (letter.reason, letter.job_id) == (Reason.CRASHED, deadly.handle.id)
    # Its first run ended before anybody could say that it had begun.
    assert len(scene.tally().runs[deadly.number]) in {3, 4}
    assert sum(worker.running for worker in workers) in {1, 2}


def test_what_was_only_claimed_does_not_count(scene):
    """A killed worker's messages that had not begun come back as if nothing had happened."""
    scene.start_workers(2, options=("--prefetch-multiplier", "10", *FAST))
    fragile = [scene.send(0.1, tracked=False, job=scene.app.fragile) for _ in range(80)]
    scene.more_runs(10)
    strike = faults.kill_worker(scene)

    def buried() -> set[int]:
        letters = scene.app.app.dead_letters.newest(80)
        return {json.loads(letter.body)[0][0]["number"] for letter in letters}

    eventually(lambda: scene.tally().lost <= buried(), 30, lambda: f"{scene.tally()}, {buried()}")
    tally = scene.tally()
    assert not tally.twice
    assert len(tally.lost) <= 2  # no more than were running
    for number in buried():  # these were, or were done but not acknowledged, or just handed over
        assert all(strike.hit(run) for run in tally.runs[number])
    assert len(tally.accepted) == len(fragile)


def test_what_was_drained_does_not_count(scene):
    """SIGTERM under load, of one worker after the other: no run is without an outcome."""
    scene.start_workers(2, options=("--prefetch-multiplier", "10", *FAST))
    for _ in range(80):
        scene.send(0.1, tracked=False, job=scene.app.fragile)
    scene.more_runs(10)
    faults.rolling_restart(scene)
    tally = scene.finish()
    assert not tally.twice
    assert scene.app.app.dead_letters.count() == 0

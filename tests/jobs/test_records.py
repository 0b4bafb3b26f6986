"""Records: what is known of a job only moves forward."""

from __future__ import annotations

import asyncio
import threading

import pytest

from umbel import JobState, Progress, UnknownJob
from umbel.config.store import Store
from umbel.jobs.records import Records


@pytest.fixture
def records(valkey) -> Records:
    """On a Valkey of the test's own."""
    return Records(Store(valkey.url, 2.5), "test", ttl_s=60)


def run(records: Records, **more) -> tuple[JobState, bool]:
    """A run begins or goes on."""
    return records.running("1", name="job", attempt=1, **more)


def test_a_job_goes_its_way(records):
    """Queued, running, retrying, running, succeeded; times and attempts are kept."""
    assert records.queued("1", "job") is JobState.QUEUED
    assert run(records) == (JobState.RUNNING, False)
    assert records.retrying("1", "ValueError: x") is JobState.RETRYING
    records.running("1", name="job", attempt=2, progress=Progress(done=1, total=4, note="a"))
    assert records.succeeded("1", {"a": [1]}) is JobState.SUCCEEDED
    record = records.read("1")
    assert (record.name, record.state, record.attempt) == ("job", JobState.SUCCEEDED, 2)
    assert (record.result, record.progress.percent) == ({"a": [1]}, 25.0)
    assert record.created_at <= record.updated_at


def test_the_first_end_stays(records):
    """Whoever comes second is told what is there."""
    records.queued("1", "job")
    run(records)
    assert records.ended("1", JobState.FAILED, "it broke") is JobState.FAILED
    assert records.succeeded("1", 5) is JobState.FAILED
    assert records.queued("1", "job") is JobState.FAILED
    assert run(records)[0] is JobState.FAILED
    assert records.cancel("1") is JobState.FAILED
    assert records.read("1").error == "it broke"


def test_cancelling_what_waits_ends_it(records):
    """At once, so a worker that begins it later is told."""
    records.queued("1", "job")
    assert records.cancel("1") is JobState.CANCELLED
    assert run(records)[0] is JobState.CANCELLED


def test_cancelling_what_runs_is_a_wish(records):
    """The run learns of it with its next progress, and a retry after it does not run."""
    records.queued("1", "job")
    run(records)
    assert records.cancel("1") is JobState.RUNNING
    assert run(records, progress=Progress(done=1)) == (JobState.RUNNING, True)
    records.retrying("1", "x")
    assert run(records)[0] is JobState.CANCELLED


def test_an_unknown_job_is_an_error(records):
    """Reading, watching and cancelling; nothing is made up."""
    for call in (records.read, records.cancel, lambda job_id: next(records.watch(job_id))):
        with pytest.raises(UnknownJob, match="nope"):
            call("nope")
    assert asyncio.run(_afails(records))


async def _afails(records: Records) -> bool:
    with pytest.raises(UnknownJob):
        await records.aread("nope")
    with pytest.raises(UnknownJob):
        await records.acancel("nope")
    return True


def test_an_outcome_expires_and_what_waits_does_not(records, valkey):
    """The time to live begins with the end; before it, longer than any delay."""
    records.queued("1", "job")
    assert valkey.client().ttl("test:job:1") > 29 * 24 * 3600
    records.succeeded("1", None)
    assert valkey.client().ttl("test:job:1") <= 60


def test_watching_gives_each_change_and_ends_with_the_job(records):
    """Nothing is missed between two looks that matter, and the last is the end."""
    records.queued("1", "job")
    seen = []
    watching = threading.Thread(target=lambda: seen.extend(records.watch("1", 10)))
    watching.start()
    run(records)
    records.succeeded("1", 7)
    watching.join(10)
    assert not watching.is_alive()
    states = [record.state for record in seen]
    assert states[-1] is JobState.SUCCEEDED
    assert len(states) == len(set(states))


def test_each_change_is_seen_by_who_keeps_up(records):
    """State, attempt, progress and the wish to end: one look for each, in order."""
    records.queued("1", "job")
    watching = records.watch("1", 10)
    seen = [next(watching)]
    for change in (
        lambda: run(records),
        lambda: run(records, progress=Progress(done=1)),
        lambda: records.retrying("1", "ValueError: x"),
        lambda: records.running("1", name="job", attempt=2),
        lambda: records.cancel("1"),
        lambda: records.ended("1", JobState.CANCELLED, "cancelled"),
    ):
        change()
        seen.append(next(watching))
    assert next(watching, None) is None
    assert [(one.state.value, one.attempt, one.cancel_requested) for one in seen] == [
        ("queued", 0, False),
        ("running", 1, False),
        ("running", 1, False),
        ("retrying", 1, False),
        ("running", 2, False),
        ("running", 2, True),
        ("cancelled", 2, True),
    ]
    assert [one.progress and one.progress.done for one in seen] == [None, None, 1, 1, 1, 1, 1]


def test_every_end_is_final(records):
    """Of all four, whatever comes after."""
    ends = [state for state in JobState if state.final]
    assert len(ends) == 4
    for end in ends:
        job_id = end.value
        records.queued(job_id, "job")
        if end is JobState.SUCCEEDED:
            assert records.succeeded(job_id, 5) is end
        else:
            assert records.ended(job_id, end, "x") is end
        before = records.read(job_id)
        assert {records.ended(job_id, other, "y") for other in ends} == {end}
        assert {records.succeeded(job_id, 6), records.retrying(job_id, "y")} == {end}
        assert records.running(job_id, name="other", attempt=9) == (end, False)
        assert (records.queued(job_id, "other"), records.cancel(job_id)) == (end, end)
        assert records.read(job_id) == before


def test_watching_ends_with_its_time(records):
    """Without an end the last look is what it was."""
    records.queued("1", "job")
    assert [record.state for record in records.watch("1", 0.05)] == [JobState.QUEUED]


def test_the_async_twins_do_the_same(records):
    """In an event loop, several watchers at once."""

    async def watch() -> list[JobState]:
        return [record.state async for record in records.awatch("1", 10)]

    async def main() -> list[list[JobState]]:
        watchers = [asyncio.create_task(watch()) for _ in range(3)]
        await asyncio.to_thread(run, records)
        await asyncio.to_thread(records.succeeded, "1", 7)
        return await asyncio.gather(*watchers)

    records.queued("1", "job")
    assert all(states[-1] is JobState.SUCCEEDED for states in asyncio.run(main()))

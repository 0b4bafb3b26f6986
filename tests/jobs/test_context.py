"""What a job is given: progress outwards, the wish to cancel inwards."""

from __future__ import annotations

import pytest

from umbel import JobCancelled, JobContext, Progress


def test_inline_it_belongs_to_nothing():
    """Nothing is reported and nothing cancels it."""
    context = JobContext()
    context.progress(1, 2)
    assert not context.cancelled
    context.raise_if_cancelled()


def test_few_of_many_calls_are_passed_on_and_the_last_always_is(monkeypatch):
    """Cheap to call for each line of a file."""
    now = [0.0]
    monkeypatch.setattr("umbel.jobs.context.monotonic", lambda: now[0])
    told: list[Progress | None] = []
    context = JobContext(report=lambda news: bool(told.append(news)))
    for done in range(1, 101):
        now[0] += 1 / 64
        context.progress(done, 100)
    assert [progress.done for progress in told if progress] == [1, 14, 27, 40, 53, 66, 79, 92, 100]


def test_looking_for_the_end_does_not_silence_progress(monkeypatch):
    """A job that looks as often as it tells is heard all the same."""
    now = [0.0]
    monkeypatch.setattr("umbel.jobs.context.monotonic", lambda: now[0])
    told: list[Progress | None] = []
    context = JobContext(report=lambda news: bool(told.append(news)))
    for done in range(1, 11):
        now[0] += 1 / 8
        assert not context.cancelled
        now[0] += 1 / 8
        assert not context.cancelled
        context.progress(done, 1000)
    assert len([progress for progress in told if progress]) == 10


def test_the_wish_is_learnt_and_stays():
    """From progress or by asking."""
    context = JobContext("job-7", report=lambda _news: True)
    context.progress(1)
    with pytest.raises(JobCancelled) as caught:
        context.raise_if_cancelled()
    assert caught.value.job_id == "job-7"

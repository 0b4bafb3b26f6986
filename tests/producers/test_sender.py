"""Sending when the broker is away, and what is said then."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import contextmanager

import pytest

from umbel import BrokerUnavailable, Job, JobContext, Message, Umbel
from umbel.jobs.context import current


class Note(Message, name="test.note", version=1):
    """A message."""

    text: str = ""


@pytest.fixture
def note(valkey):
    """A job on a Valkey of the test's own, to which it has sent before."""
    note = declared(valkey.url)
    note.send(Note())
    note.request(Note())
    return note


def declared(url: str) -> Job[Note, None, None]:
    """A job of an app that may take a second for a send."""
    app = Umbel("shop", broker=url, publish_timeout_s=1.0)

    @app.job
    def note(message: Note) -> None: ...

    return note


@contextmanager
def in_time(limit_s: float = 1.0):
    """The bound is the setting; the slack is this machine's."""
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"redis://.* within 1 s .*same job_id"):
        yield
    assert time.monotonic() - began < limit_s + SLACK_S


SLACK_S = 0.8
SENDS = {
    "send": lambda job: job.send(Note()),
    "request": lambda job: job.request(Note()),
    "asend": lambda job: asyncio.run(job.asend(Note())),
    "arequest": lambda job: asyncio.run(job.arequest(Note())),
}


@pytest.mark.parametrize("way", SENDS)
def test_a_broker_that_is_gone_is_an_error_in_time(note, valkey, way):
    """With its address and what to do, for every way of sending."""
    valkey.kill()
    with in_time():
        SENDS[way](note)


@pytest.mark.parametrize("way", SENDS)
def test_a_broker_that_hangs_is_an_error_in_time(note, valkey, way):
    """Half-open: it accepts and never answers."""
    valkey.freeze()
    try:
        with in_time():
            SENDS[way](note)
    finally:
        valkey.thaw()


def test_the_first_send_is_in_time_too(valkey):
    """No connection was made before: making one takes no longer."""
    note = declared(valkey.url)
    valkey.freeze()
    try:
        with in_time():
            note.send(Note())
    finally:
        valkey.thaw()


def test_a_hanging_broker_does_not_block_the_event_loop(note, valkey):
    """While `asend` waits, the loop turns."""

    async def main() -> int:
        turns, sending = 0, asyncio.ensure_future(note.asend(Note()))
        while not sending.done():
            await asyncio.sleep(0.01)
            turns += 1
        with pytest.raises(BrokerUnavailable):
            sending.result()
        return turns

    valkey.freeze()
    try:
        assert asyncio.run(main()) > 20
    finally:
        valkey.thaw()


def test_a_send_that_was_named_may_be_repeated(note, valkey):
    """Each copy is queued with the name, for the worker to tell them apart."""
    receipts = [note.send(Note(), job_id="order-7") for _ in range(2)]
    assert [receipt.id for receipt in receipts] == ["order-7"] * 2
    queued = [json.loads(one)["headers"] for one in valkey.client().lrange("shop", 0, 1)]
    assert [(one["id"], one["umbel-tracked"]) for one in queued] == [("order-7", True)] * 2


def test_what_is_sent_inside_a_job_was_caused_by_it(note, valkey):
    """Correlation is inherited unless another is given; causation is the job's id."""
    inside = current.set(JobContext("parent", correlation_id="order-7"))
    try:
        note.send(Note())
        note.send(Note(), correlation_id="own")
    finally:
        current.reset(inside)
    note.send(Note())
    outside, own, child = [
        json.loads(one)["headers"] for one in valkey.client().lrange("shop", 0, 2)
    ]
    assert (child["umbel-correlation-id"], child["umbel-causation-id"]) == ("order-7", "parent")
    assert (own["umbel-correlation-id"], own["umbel-causation-id"]) == ("own", "parent")
    assert outside["umbel-correlation-id"] == outside["id"]
    assert "umbel-causation-id" not in outside


def test_sending_goes_on_when_it_is_back(note, valkey):
    """Nothing has to be restarted, and what was queued before is there."""
    valkey.kill()
    with pytest.raises(BrokerUnavailable):
        note.send(Note())
    valkey.restart()
    note.send(Note())
    assert valkey.client().llen("shop") == 3

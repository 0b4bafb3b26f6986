"""Sending when the broker is away, and what is said then."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import contextmanager, suppress

import pytest
from support.process import eventually

from umbel import BrokerUnavailable, Job, JobContext, Message, MessageRefused, Umbel
from umbel.jobs.context import current


class Note(Message, name="test.note", version=1):
    """A message."""

    text: str = ""


on_both = pytest.mark.brokers("valkey", "rabbitmq")


@pytest.fixture
def note(broker):
    """A job on a broker of the test's own, to which it has sent before."""
    note = declared(broker.url)
    note.send(Note())
    note.request(Note())
    return note


def declared(url: str) -> Job[Note, None, None]:
    """A job of an app that may take a second and a half for a send."""
    app = Umbel("shop", broker=url, publish_timeout_s=1.5)

    @app.job
    def note(message: Note) -> None: ...

    return note


@contextmanager
def in_time(limit_s: float = 1.5):
    """The bound is the setting; the slack is this machine's."""
    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"(redis|amqp)://.* within 1.5 s .*same job_id"):
        yield
    assert time.monotonic() - began < limit_s + SLACK_S


@pytest.mark.parametrize("scheme", ["amqp", "redis"])
def test_of_several_urls_no_password_is_told(scheme):
    """Each is named."""
    urls = [f"{scheme}://guest:s3cret@127.0.0.1:{port}/0" for port in (1, 2)]
    with pytest.raises(BrokerUnavailable) as no:
        declared(";".join(urls)).send(Note())
    assert ";".join(urls).replace("s3cret", "**") in str(no.value)
    assert "s3cret" not in str(no.value)


SLACK_S = 2.0
SENDS = {
    "send": lambda job: job.send(Note()),
    "request": lambda job: job.request(Note()),
    "asend": lambda job: asyncio.run(job.asend(Note())),
    "arequest": lambda job: asyncio.run(job.arequest(Note())),
}


@pytest.mark.parametrize("way", SENDS)
def test_a_broker_that_is_gone_is_an_error_in_time(note, broker, way):
    """With its address and what to do, for every way of sending."""
    broker.kill()
    with in_time():
        SENDS[way](note)


@on_both
@pytest.mark.parametrize("way", SENDS)
def test_a_broker_that_hangs_is_an_error_in_time(note, broker, way):
    """Half-open: it accepts and never answers."""
    broker.freeze()
    try:
        with in_time():
            SENDS[way](note)
    finally:
        broker.thaw()


@on_both
def test_the_first_send_is_in_time_too(broker):
    """No connection was made before: making one takes no longer."""
    note = declared(broker.url)
    broker.freeze()
    try:
        with in_time():
            note.send(Note())
    finally:
        broker.thaw()


@on_both
def test_a_hanging_broker_does_not_block_the_event_loop(note, broker):
    """While `asend` waits, the loop turns."""

    async def main() -> int:
        turns, sending = 0, asyncio.ensure_future(note.asend(Note()))
        while not sending.done():
            await asyncio.sleep(0.01)
            turns += 1
        with pytest.raises(BrokerUnavailable):
            sending.result()
        return turns

    broker.freeze()
    try:
        assert asyncio.run(main()) > 20
    finally:
        broker.thaw()


@on_both
def test_a_send_that_was_named_may_be_repeated(note, broker):
    """Each copy is queued with the name, for the worker to tell them apart."""
    receipts = [note.send(Note(), job_id="order-7") for _ in range(2)]
    assert [receipt.id for receipt in receipts] == ["order-7"] * 2
    queued = [one.headers for one in broker.waiting("shop")[2:]]
    assert [(one["id"], one["umbel-tracked"]) for one in queued] == [("order-7", True)] * 2


@on_both
def test_what_is_sent_inside_a_job_was_caused_by_it(note, broker):
    """Correlation is inherited unless another is given; causation is the job's id."""
    inside = current.set(JobContext("parent", correlation_id="order-7"))
    try:
        note.send(Note())
        note.send(Note(), correlation_id="own")
    finally:
        current.reset(inside)
    note.send(Note())
    child, own, outside = [one.headers for one in broker.waiting("shop")[2:]]
    assert (child["umbel-correlation-id"], child["umbel-causation-id"]) == ("order-7", "parent")
    assert (own["umbel-correlation-id"], own["umbel-causation-id"]) == ("own", "parent")
    assert outside["umbel-correlation-id"] == outside["id"]
    assert "umbel-causation-id" not in outside


@on_both
def test_sending_goes_on_when_it_is_back(note, broker):
    """Nothing has to be restarted, and what was queued before is there."""
    broker.kill()
    with pytest.raises(BrokerUnavailable):
        note.send(Note())
    broker.restart()

    def sent() -> bool:  # a server that is back may still be busy with its own recovery
        with suppress(BrokerUnavailable):
            note.send(Note(text="back"))
            return True
        return False

    eventually(sent, 20)
    texts = [json.loads(one.body)[0][0]["text"] for one in broker.waiting("shop")]
    assert texts[:2] == ["", ""]
    assert set(texts[2:]) == {"back"}  # once or, after an uncertain failure, more often


@pytest.mark.parametrize("how", SENDS)
def test_a_server_that_is_full_says_so(note, broker, how):
    """Nothing was queued, and nothing is wrong with the connection."""
    with broker.client() as client:
        client.config_set("maxmemory", 1)
    with pytest.raises(MessageRefused, match="test.note was not taken by redis://.*maxmemory"):
        SENDS[how](note)
    with pytest.raises(MessageRefused, match="maxmemory"):
        note.send_many([Note()])
    with broker.client() as client:
        client.config_set("maxmemory", 0)
    SENDS[how](note)

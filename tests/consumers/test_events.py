"""What a worker tells Flower, beside what Celery's own dispatcher would have told."""

from __future__ import annotations

from contextlib import suppress

import pytest
from celery.events.dispatcher import EventDispatcher
from support.process import eventually

from umbel import Umbel

BUFFERED = {"hostname": "w@localhost", "buffer_group": ["task"]}


@pytest.fixture
def app(valkey):
    with Umbel("shop", broker=valkey.url) as app:
        yield app


@pytest.fixture
def dispatch(app):
    """Factory `dispatch(kind=ours, **options) -> dispatcher` that buffers what is of tasks."""
    with app.connection_for_write() as connection:

        def make(kind=app.events.Dispatcher, **options):
            return kind(connection, app=app, **BUFFERED, **options)

        yield make


@pytest.fixture
def arrived(app):
    """Function `arrived(count)`: the events that have come, once they are so many."""
    seen: list[dict] = []
    with app.connection_for_read() as own:
        receiver = app.events.Receiver(own, handlers={"*": seen.append})
        with receiver.consumer_context(wakeup=False) as (connection, _, _):

            def drained():
                with suppress(TimeoutError):
                    while True:
                        connection.drain_events(timeout=0.2)
                return len(seen)

            def arrived(count):
                eventually(lambda: drained() >= count)
                come, seen[:] = [*seen], []
                return come

            drained()  # Kombu subscribes when it first waits
            yield arrived


def told(event):
    """All but what differs from one event to the next."""
    return {**event, "timestamp": 0, "clock": 0, "local_received": 0}


def test_what_waited_arrives_as_celerys_does(dispatch, arrived):
    """Every field; the time, unless it is given, and the clock go on."""
    fields = {"uuid": "1", "args": "é ' \"", "runtime": 0.1, "eta": None, "retries": 0}
    come = []
    for dispatcher in (dispatch(), dispatch(EventDispatcher)):
        dispatcher.send("task-received", **fields)
        dispatcher.send("task-succeeded", **fields, timestamp=5.0)
        dispatcher.flush()
        come.append(arrived(2))
    ours, celerys = come
    assert [*map(told, ours)] == [*map(told, celerys)]
    assert ours[1]["timestamp"] == celerys[1]["timestamp"] == 5.0
    assert ours[0]["clock"] < ours[1]["clock"] < celerys[0]["clock"]
    assert 0 <= celerys[0]["timestamp"] - ours[0]["timestamp"] < 60


def test_what_does_not_wait_is_sent_by_celerys(dispatch, arrived):
    """Other groups at once, and with others what says how it is to be made."""
    dispatcher = dispatch()
    dispatcher.send("worker-online", freq=2)
    assert [event["type"] for event in arrived(1)] == ["worker-online"]
    dispatcher.send("task-received", uuid="2", utcoffset=lambda: 7, retry=True)
    dispatcher.send("task-received", True, uuid="3")
    dispatcher.flush()
    second, third = arrived(2)
    assert (second["uuid"], second["utcoffset"]) == ("2", 7)
    assert (third["uuid"], third["hostname"]) == ("3", "w@localhost")


def test_what_nobody_wants_is_not_kept(dispatch, arrived):
    """A group that is switched off, and a dispatcher that is."""
    dispatcher = dispatch(groups=["worker"])
    dispatcher.send("task-received", uuid="1")
    dispatcher.groups.add("task")  # what Celery's `enable_events` does
    dispatcher.send("task-received", uuid="2")
    dispatcher.flush()
    dispatcher.disable()
    dispatcher.send("task-received", uuid="3")
    dispatcher.enable()
    dispatcher.send("task-received", uuid="4")
    dispatcher.flush()
    assert [event["uuid"] for event in arrived(2)] == ["2", "4"]


def test_a_full_message_goes_out(dispatch, arrived):
    """Before it is full somebody is told that events wait."""
    waits: list[int] = []
    dispatcher = dispatch(on_send_buffered=lambda: waits.append(1))
    dispatcher.buffer_limit = 3
    for number in range(3):
        dispatcher.send("task-received", uuid=number)
    assert [event["uuid"] for event in arrived(3)] == [0, 1, 2]
    assert len(waits) == 2

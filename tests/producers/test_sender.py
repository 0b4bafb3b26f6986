"""Sending when the broker is away, and what is said then."""

from __future__ import annotations

import time

import pytest

from umbel import BrokerUnavailable, Message, Umbel


class Note(Message, name="test.note", version=1):
    """A message."""

    text: str = ""


@pytest.fixture
def note(valkey):
    """A job on a Valkey of the test's own, to which it has sent before."""
    app = Umbel("shop", broker=valkey.url, publish_timeout_s=1.0)

    @app.job
    def note(message: Note) -> None: ...

    note.send(Note())
    note.request(Note())
    return note


def test_a_broker_that_is_gone_is_an_error(note, valkey):
    """Soon, with its address and what to do; for both ways of sending."""
    valkey.kill()
    for send in (note.send, note.request):
        with pytest.raises(BrokerUnavailable, match=r"redis://.* within 1 s .*same job_id"):
            send(Note())


def test_a_broker_that_hangs_is_an_error_in_time(note, valkey):
    """Half-open: it accepts and never answers. The bound is the setting, with some slack."""
    valkey.freeze()
    try:
        for send in (note.send, note.request):
            began = time.monotonic()
            with pytest.raises(BrokerUnavailable):
                send(Note())
            assert time.monotonic() - began < 3 * 1.0
    finally:
        valkey.thaw()


def test_sending_goes_on_when_it_is_back(note, valkey):
    """Nothing has to be restarted, and what was queued before is there."""
    valkey.kill()
    with pytest.raises(BrokerUnavailable):
        note.send(Note())
    valkey.restart()
    note.send(Note())
    assert valkey.client().llen("shop") == 3

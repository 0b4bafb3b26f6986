"""What must be shown, with small counts; `make promises` has the large ones."""

from __future__ import annotations

import pytest

from conformance import scenarios
from conformance.moments import SUCCESS

events = pytest.mark.promise("5.2 Events")
queues = pytest.mark.promise("5.3 Direct work queues")
sagas = pytest.mark.promise("5.4 Sagas")
callbacks = pytest.mark.promise("5.1 Callbacks")
delivery = pytest.mark.promise("6 Delivery")


@events
def test_events(fresh):
    """One subscriber crashes and one fails for good: the others handle each event once."""
    scenarios.events(fresh, 40)


@queues
def test_order(fresh):
    """Shards keep the order of each key through a consumer's death."""
    scenarios.order(fresh, 12)


@delivery
def test_delays(fresh):
    """Delays across a restart of broker and worker: none early, none lost."""
    scenarios.delays(fresh, 20, 4)


@sagas
def test_sagas(fresh):
    """Workers are killed while sagas run: all done or all undone, each effect once."""
    scenarios.sagas(fresh, 10)


@callbacks
def test_callbacks(fresh):
    """SIGKILL at each moment between a job's last line and its settlement: told, by one id."""
    scenarios.callbacks(fresh, {"success": SUCCESS, "failure": ["bury ends", "tell_failure ends"]})

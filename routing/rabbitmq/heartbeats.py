"""Heartbeats that a busy process cannot starve.

py-amqp sends them from the event loop, which on the solo pool stands still while a job runs: the
server would take the worker for dead, give its message to another, and the job would run twice.
"""

from __future__ import annotations

import os
import threading
from typing import Protocol
from weakref import WeakSet

BEATS = 4
"""How often a connection is looked at in the time of its heartbeat."""


class Beating(Protocol):
    """A connection."""

    heartbeat: float

    def beat(self) -> None:
        """Say that this process lives, if nothing was said lately; never waits."""

    def forked(self) -> None:
        """This process is a child, and the connection its parent's."""


class Heartbeats:
    """The connections of this process, and the thread that lets each of them beat."""

    def __init__(self) -> None:
        self._connections: WeakSet[Beating] = WeakSet()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        os.register_at_fork(after_in_child=self._forked)

    def add(self, connection: Beating) -> None:
        """From now on, if a heartbeat was agreed upon."""
        if not connection.heartbeat:
            return
        with self._changed:
            self._connections.add(connection)
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, name="umbel-heartbeats", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def remove(self, connection: Beating) -> None:
        """It is closed."""
        with self._changed:
            self._connections.discard(connection)

    def _run(self) -> None:
        while True:
            with self._changed:
                connections = list(self._connections)
            for connection in connections:
                connection.beat()
            pause_s = min((one.heartbeat / BEATS for one in connections), default=None)
            del connections  # or the last of them would never be collected
            with self._changed:
                self._changed.wait(pause_s)

    def _forked(self) -> None:
        connections = list(self._connections)
        self._changed = threading.Condition()
        self._connections = WeakSet()
        self._thread = None
        for connection in connections:
            connection.forked()


heartbeats = Heartbeats()

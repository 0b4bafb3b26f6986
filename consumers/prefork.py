"""Celery's prefork pool, which writes what it gets, and notices at once that a child has ended.

A child's end is seen by a pipe that closes a moment before the kernel can say how it ended. Celery
looks in that moment, finds the child alive, and looks again after five seconds; and when the
connection is restored meanwhile, it trips over the pipe that is gone, which ends the worker
(5.7: ``ValueError: file descriptor is None``).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from celery.concurrency import asynpool, prefork

LOOK_AGAIN_S = 0.05


class Turn(dict[Callable[[], Any], None]):
    """What an event loop calls before it waits: in the order in which it was asked to, last time.

    Kombu's is a set, and so in an order that differs from process to process. Where the pool's look
    at what there is to write came before the transport's, which gives it more to write, each job
    waited for the next event of any kind.
    """

    def add(self, callback: Callable[[], Any]) -> None:
        """Call this, after all that are there."""
        self.pop(callback, None)
        self[callback] = None

    def __copy__(self) -> list[Callable[[], Any]]:
        return list(self)


class Pool(asynpool.AsynPool):
    """The processes."""

    _look: Callable[[], None] | None = None

    def register_with_event_loop(self, hub: Any) -> None:
        """At each connection, after the transport: as the last of a turn."""
        super().register_with_event_loop(hub)
        self._look = self._look or self.on_poll_start  # it makes others, and goes on with the first
        hub.on_tick = Turn.fromkeys(hub.on_tick)
        hub.on_tick.add(self._look)

    def _event_process_exit(self, hub: Any, proc: Any) -> None:
        super()._event_process_exit(hub, proc)
        if proc in self._pool:
            hub.call_later(LOOK_AGAIN_S, self._look_again, hub, proc)

    def _look_again(self, hub: Any, proc: Any) -> None:
        self.maintain_pool()
        if proc in self._pool:
            hub.call_later(LOOK_AGAIN_S, self._look_again, hub, proc)

    def _track_child_process(self, proc: Any, hub: Any) -> None:
        """Called again for all of them when the connection is restored."""
        if getattr(proc, "_sentinel_poll", 0) is None:  # it has ended, and was seen to
            hub.call_later(LOOK_AGAIN_S, self._look_again, hub, proc)
        else:
            super()._track_child_process(proc, hub)


class TaskPool(prefork.TaskPool):
    """What a worker takes in the place of ``-P prefork``."""

    Pool = Pool

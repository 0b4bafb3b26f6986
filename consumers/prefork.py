"""Celery's prefork pool, which notices at once that a child has ended.

A child's end is seen by a pipe that closes a moment before the kernel can say how it ended. Celery
looks in that moment, finds the child alive, and looks again after five seconds; and when the
connection is restored meanwhile, it trips over the pipe that is gone, which ends the worker
(5.7: ``ValueError: file descriptor is None``).
"""

from __future__ import annotations

from typing import Any

from celery.concurrency import asynpool, prefork

LOOK_AGAIN_S = 0.05


class Pool(asynpool.AsynPool):
    """The processes."""

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

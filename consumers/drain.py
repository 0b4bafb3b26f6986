"""The end of a worker: what runs is finished, or given back in time.

Celery waits for running jobs as long as they take. Whoever sent the signal does not: after a grace
period it kills, and then each message counts a run and comes back only when the lease is over.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from celery.worker import state

from umbel.consumers.request import Held

logger = logging.getLogger("umbel.worker")


class Drain:
    """Bounds the end of a worker.

    Args:
        pool: Celery's, as a function, since it starts later.
        give_back: returns what the worker still holds, uncounted.
        grace_s: longest time for what runs; 0 for any time.
    """

    def __init__(
        self, pool: Callable[[], Any], give_back: Callable[[], None], grace_s: float
    ) -> None:
        self._pool = pool
        self._give_back = give_back
        self._grace_s = grace_s
        self._begun = False

    def begin(self, **_: Any) -> None:
        """From now on; a receiver of Celery's signal for the end, which may come twice."""
        if self._grace_s and not self._begun:
            self._begun = True
            timer = threading.Timer(self._grace_s, self._give_up)
            timer.daemon = True
            timer.start()

    def _give_up(self) -> None:
        """Stop the jobs, then give their messages back, then end: in this order nothing doubles."""
        running = [request for request in tuple(state.active_requests) if isinstance(request, Held)]
        for request in running:
            request.lost = True
        for process in {*(self._pool().info or {}).get("processes", ())} - {os.getpid()}:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)
        logger.warning(
            "%d jobs were not done within grace_s=%g: their messages go back, uncounted",
            *(len(running), self._grace_s),
            extra={"action": "drained", "returned": len(running)},
        )
        self._give_back()
        logging.shutdown()
        os._exit(os.EX_OK)

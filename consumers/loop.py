"""The event loop of `async def` jobs: one for each process, for its life.

One loop, so that what a job keeps between runs (an HTTP client's connections, a database pool)
stays usable; a thread of its own, so that every pool of Celery's may wait for it.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

R = TypeVar("R")

_CANCEL_CHECK_S = 0.3


class ProcessLoop:
    """Runs coroutines of any thread on one loop, which a forked child makes anew."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        os.register_at_fork(after_in_child=self._forget)

    def run(
        self, job: Coroutine[Any, Any, R], timeout_s: float | None, cancelled: Callable[[], bool]
    ) -> R:
        """Run to the end and return the result.

        Args:
            job: what to run.
            timeout_s: it is cancelled after this time; None for no limit.
            cancelled: asked every now and then; once it says True the job is cancelled.

        Raises:
            TimeoutError: the time was over.
            asyncio.CancelledError: `cancelled` said so.
        """
        watched = _watched(job, timeout_s, cancelled)
        return asyncio.run_coroutine_threadsafe(watched, self._running_loop()).result()

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                thread = threading.Thread(
                    target=self._loop.run_forever, name="umbel-jobs", daemon=True
                )
                thread.start()
            return self._loop

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._loop = None


async def _watched(
    job: Coroutine[Any, Any, R], timeout_s: float | None, cancelled: Callable[[], bool]
) -> R:
    task = asyncio.ensure_future(job)
    watcher = asyncio.ensure_future(_cancel_when(task, cancelled))
    limit = asyncio.timeout(timeout_s)
    try:
        async with limit:
            return await task
    except TimeoutError:
        if limit.expired():
            raise TimeoutError(f"ran longer than timeout_s={timeout_s:g}") from None
        raise
    finally:
        watcher.cancel()


async def _cancel_when(task: asyncio.Future[Any], cancelled: Callable[[], bool]) -> None:
    while not await asyncio.to_thread(cancelled):
        await asyncio.sleep(_CANCEL_CHECK_S)
    task.cancel()

"""Celery's result backend, told to keep our records too.

Every end that Celery knows of, in the child or in the worker's main process, comes through one of
four methods of its backend, after the callbacks and the next steps of a chain were sent: the place
to write what must not be written before.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from umbel.config.errors import StoreRequired, UmbelError
from umbel.jobs.outages import until_written
from umbel.jobs.records import JobState, Records
from umbel.jobs.wire import Sealed, fence_of, is_tracked

logger = logging.getLogger("umbel.worker")


def recording(backend_class: type[Any]) -> type[Any]:
    """Any of Celery's backend classes, with our records kept beside it."""
    return type(f"Recording{backend_class.__name__}", (_Recording, backend_class), {})


_Backend: Any = object


class _Recording(_Backend):
    """The four methods; what is below them is the backend's own."""

    app: Any

    def mark_as_done(
        self, task_id: str, result: Any, request: Any = None, store_result: bool = True, **kw: Any
    ) -> None:
        if store_result or getattr(request, "chord", None):  # else nobody is told
            mark = super().mark_as_done
            self._write(request, partial(mark, task_id, result, request, store_result, **kw))
        if records := self._records_of(request):
            value = result.value if isinstance(result, Sealed) else result
            self._write(request, partial(records.succeeded, task_id, value, fence_of(request)))

    def mark_as_failure(
        self, task_id: str, exc: Any, traceback: Any = None, request: Any = None, **kw: Any
    ) -> None:
        mark = super().mark_as_failure
        self._write(request, partial(mark, task_id, exc, traceback, request, **kw))
        text = traceback and str(traceback)
        self._end(task_id, request, JobState.FAILED, _describe(exc), text)

    def mark_as_retry(
        self, task_id: str, exc: Any, traceback: Any = None, request: Any = None, **kw: Any
    ) -> None:
        mark = super().mark_as_retry
        self._write(request, partial(mark, task_id, exc, traceback, request, **kw))
        if records := self._records_of(request):
            error = _describe(exc) if exc else ""
            self._write(request, partial(records.retrying, task_id, error, fence_of(request)))

    def mark_as_revoked(
        self, task_id: str, reason: str = "", request: Any = None, **kw: Any
    ) -> None:
        self._write(request, partial(super().mark_as_revoked, task_id, reason, request, **kw))
        state = JobState.EXPIRED if reason == "expired" else JobState.CANCELLED
        self._end(task_id, request, state, reason)

    def _end(
        self, task_id: str, request: Any, state: JobState, error: str, traceback: str | None = None
    ) -> None:
        if records := self._records_of(request):
            fence = fence_of(request)
            self._write(request, partial(records.ended, task_id, state, error, traceback, fence))

    def _write(self, request: Any, write: Callable[[], Any]) -> None:
        """Until the store can be written, where a job has just run; the worker's main process of
        a pool cannot wait, and sees to it itself (`umbel.consumers.request`)."""
        if self.app.current_worker_task:
            until_written(request, write)
        else:
            write()

    def _call_task_errbacks(self, request: Any, exc: Any, traceback: Any) -> None:
        """One that cannot be sent must not undo its job's end: on threads that costs a place."""
        try:
            super()._call_task_errbacks(request, exc, traceback)
        except (UmbelError, TypeError, ValueError, LookupError, AttributeError):
            logger.exception(
                "an errback of job %s could not be sent",
                request.id,
                extra={"action": "errback_dropped", "job_id": request.id},
            )

    def _records_of(self, request: Any) -> Records | None:
        """The records, if this is a tracked job of ours."""
        if getattr(request, "task", None) not in self.app.jobs:
            return None
        if not is_tracked(request):
            return None
        try:
            records: Records = self.app.records
        except StoreRequired:
            return None
        return records


def _describe(error: Any) -> str:
    return f"{type(error).__name__}: {error}"

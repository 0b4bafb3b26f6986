"""A job's changes as server-sent events."""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import cast

from fastapi import Response
from sse_starlette import EventSourceResponse, ServerSentEvent

from umbel.config.errors import UnknownJob
from umbel.jobs.records import Record, Records
from umbel.producers.web.documents import status, tagged
from umbel.producers.web.problems import STORE_AWAY

_log = logging.getLogger("umbel.web")


def follow(records: Records, first: Record, root: str, last_event_id: str | None) -> Response:
    """The job now and at each change, up to its end; then the stream ends too.

    It ends earlier when the store goes away: who has not seen a final state connects again.

    Args:
        records: where to look.
        first: the record that was just read: an unknown job is a 404 and not a broken stream.
        root: where the service is mounted.
        last_event_id: what a browser that connects again has seen last. An `EventSource` does so
            for ever, until it is told 204 (HTML, 9.2): there is nothing after the end.
    """
    if first.state.final and last_event_id == tagged(status(first, root))[1]:
        return Response(status_code=204)
    return EventSourceResponse(_events(records, first.job_id, root))


async def _events(records: Records, job_id: str, root: str) -> AsyncIterator[ServerSentEvent]:
    # Closed, and not left to the garbage collector: a client that is gone frees its subscription.
    changes = cast("AsyncGenerator[Record, None]", records.awatch(job_id))
    async with aclosing(changes):
        try:
            async for record in changes:
                body, tag = tagged(status(record, root))
                yield ServerSentEvent(data=body.decode(), event="job", id=tag)
        except UnknownJob:
            return  # the record expired while nobody changed it
        except STORE_AWAY as error:
            # The answer has begun: it cannot become a problem any more.
            _log.warning("events of job %s end early: %r", job_id, error)

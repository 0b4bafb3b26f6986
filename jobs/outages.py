"""The broker or the store away in the middle of a delivery: who waits for them, and how long.

What a job has done must neither be done again nor be forgotten because nobody could be told. So the
process that ran it waits, as long as the message is its own.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from time import sleep
from typing import Any

from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as StoreConnectionError
from redis.exceptions import ReadOnlyError
from redis.exceptions import TimeoutError as StoreTimeoutError

from umbel.jobs.wire import claim_of
from umbel.routing.valkey import Holding, holding

logger = logging.getLogger("umbel.worker")

AWAY = (OperationalError, StoreConnectionError, StoreTimeoutError, ReadOnlyError)
"""What says that the broker or the store cannot be written now."""

LOOK_AGAIN_S = 0.1
"""Pause while it is not known whether a message is still held."""
WRITE_AGAIN_S = 1.0
"""Pause between attempts to write an outcome."""


def held(request: Any) -> Holding:
    """Whether the message is still this worker's, as far as is known now."""
    claim = claim_of(request)
    return holding(claim) if claim else Holding.YES


def still_held(request: Any) -> bool:
    """The same, once it is known: while the broker is away this waits for it."""
    while (known := held(request)) is Holding.UNKNOWN:
        sleep(LOOK_AGAIN_S)
    return known is Holding.YES


def until_written(request: Any, write: Callable[[], Any]) -> None:
    """Call `write` until it can, or until others have the message: then nothing here counts."""
    while still_held(request):
        try:
            write()
        except AWAY as error:
            wait_out(request, error)
        else:
            return


def wait_out(request: Any, error: Exception) -> None:
    """Pause before the outcome of a job is written again."""
    tell_waiting(request.id, error)
    sleep(WRITE_AGAIN_S)


def tell_waiting(job_id: str, error: Exception) -> None:
    """Say what a job waits for."""
    logger.warning(
        "what came of job %s cannot be written now, trying again: %r",
        *(job_id, error),
        extra={"action": "outcome_waits", "job_id": job_id},
    )

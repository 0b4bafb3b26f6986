"""How a delivery can end: exactly one of these for each."""

from __future__ import annotations

from dataclasses import dataclass

from celery.exceptions import Ignore, Reject
from celery.exceptions import Retry as CeleryRetry

from umbel.config.errors import ContractError
from umbel.consumers.deadletters import Reason
from umbel.jobs.records import JobState
from umbel.jobs.wire import Sealed


@dataclass(frozen=True)
class Done:
    """The job returned; the message is done with."""

    result: Sealed


@dataclass(frozen=True)
class Retried:
    """The job failed and is to run again."""

    error: Exception
    delay_s: float


@dataclass(frozen=True)
class Dead:
    """The job failed for good: dead letters."""

    error: Exception
    reason: Reason = Reason.FAILED


@dataclass(frozen=True)
class Quarantined:
    """The message cannot be read: it is kept and never run."""

    error: ContractError
    reason: Reason = Reason.CONTRACT


@dataclass(frozen=True)
class Returned:
    """Not for this worker now: back to the queue, after a pause."""

    why: str
    counted: bool


@dataclass(frozen=True)
class Cancelled:
    """Somebody asked for the end, and the job noticed or had not begun."""


@dataclass(frozen=True)
class Dropped:
    """A copy of a job that has ended: nothing to do."""

    state: JobState


@dataclass(frozen=True)
class Passed:
    """The job raised one of Celery's own signals: Celery knows what to do."""

    signal: Ignore | Reject | CeleryRetry


Outcome = Done | Retried | Dead | Quarantined | Returned | Cancelled | Dropped | Passed

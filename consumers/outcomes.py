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
    """The job returned, now or before under the same idempotency key.

    Attributes:
        result: what it returned.
        once: the idempotency key to remember it by.
    """

    result: Sealed
    once: str | None = None


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
    """Not for this worker, or not now: back to the queue, after a pause.

    Attributes:
        why: for people.
        counted: whether there is an end to it.
        delay_s: the pause, in seconds.
        quiet: whether it is nothing to warn of.
    """

    why: str
    counted: bool
    delay_s: float = 5.0
    quiet: bool = False


@dataclass(frozen=True)
class Moved:
    """The message belongs into another queue."""

    queue: str


@dataclass(frozen=True)
class Cancelled:
    """Somebody asked for the end, and the job noticed or had not begun."""


@dataclass(frozen=True)
class Lost:
    """Another worker has the message by now: whatever this one would say is void."""

    why = "another worker has the message: this one was not heard for a lease"


@dataclass(frozen=True)
class Dropped:
    """A copy of a job that has ended: nothing to do."""

    state: JobState

    @property
    def why(self) -> str:
        """For people."""
        return f"a copy of a job that has {self.state.value}"


@dataclass(frozen=True)
class Passed:
    """The job raised one of Celery's own signals: Celery knows what to do."""

    signal: Ignore | Reject | CeleryRetry


Outcome = (
    Done | Retried | Dead | Quarantined | Returned | Moved | Cancelled | Lost | Dropped | Passed
)

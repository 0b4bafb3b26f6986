"""The two jobs of a saga's own: told how a step has ended, they move the saga on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from umbel.config.errors import SagaFailed, UnknownJob
from umbel.jobs.callbacks import Completed, Failed
from umbel.jobs.context import JobContext
from umbel.jobs.records import JobState, Records
from umbel.jobs.retry import Retry
from umbel.jobs.saga import Saga
from umbel.jobs.saga_records import SagaRecords
from umbel.jobs.saga_state import SagaRecord, SagaState

logger = logging.getLogger("umbel.worker")

PERSISTENT: dict[str, Any] = {
    # The store or the broker may be away for an hour; a message that cannot be made stays so, and
    # so does a saga that nobody knows.
    "retry": Retry(delays_s=[1, 5, 10, 30, *[60] * 60], give_up_on=(SagaFailed, UnknownJob)),
    # They harm no process: when theirs dies it is for something else.
    "max_deliveries": 100,
}
"""How the two are run."""


class SagaApp(Protocol):
    """What they need of the app."""

    @property
    def records(self) -> Records: ...
    @property
    def saga_records(self) -> SagaRecords: ...


def tellers(
    app: SagaApp, saga: Saga[Any]
) -> tuple[Callable[[Completed[Any], JobContext], None], Callable[[Failed, JobContext], None]]:
    """The functions of the two jobs: of success and of failure.

    What they are told they write into the job's record first. So a copy of the job that comes
    late, because its worker died after telling, is dropped, and never runs after its undo.
    """

    def succeeded(message: Completed[Any], context: JobContext) -> None:
        app.records.succeeded(message.job_id, message.result)
        attempts = attempts_of(message.job_id)
        go_on(context, lambda now: now.tell_succeeded(message.job_id, message.result, attempts))

    def failed(message: Failed, context: JobContext) -> None:
        if not app.saga_records.read(context.saga).undoes(message.job_id):
            app.records.ended(message.job_id, JobState.FAILED, message.error)
        attempts = attempts_of(message.job_id)
        go_on(context, lambda now: now.tell_failed(message.job_id, message.error, attempts))

    def attempts_of(job_id: str) -> int:
        with suppress(UnknownJob):
            return app.records.read(job_id).attempt
        return 0

    def go_on(context: JobContext, change: Callable[[SagaRecord], bool]) -> None:
        record = app.saga_records.move(context.saga, change)
        report(record)
        saga.go_on(record)

    return succeeded, failed


def report(record: SagaRecord) -> None:
    """To the log, what somebody may want to see to."""
    if record.state in {SagaState.STUCK, SagaState.UNDONE}:
        logger.log(
            logging.ERROR if record.state is SagaState.STUCK else logging.WARNING,
            *("saga %s/%s is %s: %s", record.name, record.id, record.state, record.why),
            extra={"action": f"saga_{record.state}", "saga": f"{record.name}/{record.id}"},
        )

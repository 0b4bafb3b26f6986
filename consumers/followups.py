"""What a job's end sets off in Celery (a chain's next step, a callback), when it does not fit."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from kombu.utils.json import dumps

from umbel.config.errors import ContractError
from umbel.consumers.deadletters import DeadLetter, Kind, Reason, describe, letter_id
from umbel.jobs.context import current
from umbel.jobs.job import Job
from umbel.jobs.records import JobState

_EMBEDDED = ("callbacks", "errbacks", "chain", "chord")
_OPTIONS = {"link": "callbacks", "link_error": "errbacks"}


def is_set_off(app: Any) -> bool:
    """Whether Celery is sending what follows a job, and not the job's own code."""
    return isinstance(app.current_worker_task, Job) and current.get() is None


def quarantine(
    app: Any, job: Job[Any, Any, Any], args: Any, options: dict[str, Any], error: ContractError
) -> str:
    """Keep the follow-up, so that the job which has succeeded stays so. Returns its id."""
    job_id = options.get("task_id") or str(uuid4())
    options = {_OPTIONS.get(name, name): value for name, value in options.items()}
    embedded = {name: options.get(name) for name in _EMBEDDED}
    body = dumps([list(args or ()), {}, embedded]).encode()
    ignored = bool(options.get("ignore_result"))
    app.dead_letters.add(
        DeadLetter(
            id=letter_id(job_id, None, body),
            kind=Kind.QUARANTINE,
            reason=Reason.CONTRACT,
            error=describe(error),
            queue=job.work_queue.name,
            job=job.name,
            job_id=job_id,
            content_type="application/json",
            content_encoding="utf-8",
            headers={
                "task": job.name,
                "id": job_id,
                "root_id": options.get("root_id"),
                "ignore_result": ignored,
            },
            body=body,
        )
    )
    if not ignored:
        app.records.ended(job_id, JobState.FAILED, describe(error))
    return job_id

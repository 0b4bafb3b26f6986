"""Telling whoever wants to know how a job has ended, before its message is settled.

A worker that dies in between runs the job once more and tells it once more, under the same id.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from umbel.jobs.callbacks import Completed, Failed, callback_id
from umbel.jobs.contracts import Message
from umbel.jobs.wire import ON_FAILURE, ON_SUCCESS, Checked, Envelope, shown


def tell_success(delivery: Any, result: Any) -> None:
    """To the job that the message names, if it names one."""
    if address := delivery.envelope.on_success:
        _send(delivery, address, ON_SUCCESS, Completed, {"result": result})


def tell_failure(delivery: Any, reason: str, error: str) -> None:
    """Likewise."""
    if address := delivery.envelope.on_failure:
        _send(delivery, address, ON_FAILURE, Failed, {"reason": reason, "error": error})


def tell_dropped(delivery: Any, why: str) -> None:
    """A job was cancelled or has expired: a saga waits for an end, and is told of this one too."""
    if delivery.envelope.saga:
        tell_failure(delivery, why, why)


def _send(
    delivery: Any, address: Any, which: str, contract: type[Message], what: dict[str, Any]
) -> None:
    correlation_id = delivery.envelope.correlation_id or delivery.job_id
    payload = {"job": delivery.job.name, "job_id": delivery.job_id, **what}
    payload["correlation_id"] = correlation_id
    envelope = replace(
        Envelope.first(contract, correlation_id, delivery.job_id, tracked=False),
        saga=delivery.envelope.saga,
    )
    delivery.app.send_task(
        address["job"],
        (Checked(payload),),
        queue=delivery.app.amqp.queue(address["queue"]),
        task_id=callback_id(delivery.job_id, which),
        headers=envelope.headers(),
        ignore_result=True,
        argsrepr=shown({**payload, "result": "…"} if "result" in payload else payload),
        kwargsrepr="",
    )

"""Telling whoever wants to know how a job has ended, before its message is settled.

A worker that dies in between runs the job once more and tells it once more, under the same id.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from umbel.jobs.callbacks import Completed, Failed, callback_id
from umbel.jobs.contracts import Message
from umbel.jobs.webhooks import WEBHOOK, WebhookCall
from umbel.jobs.wire import ON_FAILURE, ON_SUCCESS, SAGA, Checked, first_headers, shown
from umbel.routing.queues import webhook_queue

logger = logging.getLogger("umbel.worker")


def tell_success(delivery: Any, result: Any) -> None:
    """To the job or the URL that the message names, if it names one."""
    if address := delivery.envelope.on_success:
        _tell(delivery, address, ON_SUCCESS, Completed, {"result": result})


def tell_failure(delivery: Any, reason: str, error: str) -> None:
    """Likewise."""
    if address := delivery.envelope.on_failure:
        _tell(delivery, address, ON_FAILURE, Failed, {"reason": reason, "error": error})


def tell_dropped(delivery: Any, why: str) -> None:
    """A job was cancelled or has expired: a saga waits for an end, and is told of this one too."""
    if delivery.envelope.saga:
        tell_failure(delivery, why, why)


def _tell(
    delivery: Any, address: Any, which: str, contract: type[Message], what: dict[str, Any]
) -> None:
    payload = {"job": delivery.job.name, "job_id": delivery.job_id, **what}
    payload["correlation_id"] = delivery.envelope.correlation_id or delivery.job_id
    visible: object = {**payload, "result": "…"} if "result" in payload else payload
    if url := address.get("url"):
        # The app's own job does the posting, with its own queue, retries and dead letters.
        address = {"job": WEBHOOK, "queue": webhook_queue(delivery.app.prefix)}
        _warn_of_secrets(delivery, address["queue"])
        visible = WebhookCall(
            url=url, type=contract.contract_name, timestamp=datetime.now(UTC), data=payload
        )
        contract, payload = WebhookCall, visible.payload()
    envelope = delivery.envelope
    correlation_id = envelope.correlation_id or delivery.job_id
    headers = first_headers(contract, correlation_id, delivery.job_id, tracked=False)
    if envelope.saga:
        headers[SAGA] = envelope.saga
    delivery.app.send_task(
        address["job"],
        (Checked(payload),),
        queue=delivery.app.amqp.queue(address["queue"]),
        task_id=callback_id(delivery.job_id, which),
        headers=headers,
        ignore_result=True,
        argsrepr=shown(visible),
        kwargsrepr="",
    )


def _warn_of_secrets(delivery: Any, queue: str) -> None:
    """Who sent the job has a secret, and here nobody will look into the queue."""
    if not delivery.app.settings.webhook_secrets:
        logger.warning(
            "the callback of job %s to a URL waits in queue %s for a worker with webhook_secrets",
            *(delivery.job_id, queue),
            extra={"action": "webhook_waits", "job_id": delivery.job_id, "queue": queue},
        )

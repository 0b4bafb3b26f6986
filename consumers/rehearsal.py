"""Whether a worker with today's code would run a message: its own checks, without a run."""

from __future__ import annotations

from typing import Any, Protocol

from kombu import Message

from umbel.config.errors import ContractError
from umbel.consumers.deadletters import DeadLetter, Reason
from umbel.consumers.delivery import received
from umbel.consumers.foreign import AdoptingApp, adopt
from umbel.consumers.inspection import Misfit, inspect
from umbel.consumers.subscriptions import address
from umbel.jobs.job import Job
from umbel.jobs.wire import Envelope

UNKNOWN_TYPE = "application/data"
"""What Kombu takes a message for that says nothing."""


class RehearsalApp(AdoptingApp, Protocol):
    """What is asked of an app."""

    tasks: Any


def rehearse(app: RehearsalApp, message: Any) -> None:
    """Let a message pass that would be run; a plain task's as far as Celery can read it.

    Args:
        app: with today's code.
        message: Kombu's, with the serializers that are accepted, and with its queue as the routing
            key of its `delivery_info`.

    Raises:
        Misfit: it would not; says why.
    """
    adopt(message, app)
    address(message, app.subscriptions)
    inspect(message, app.tasks)
    if job := app.jobs.get(message.headers["task"]):
        args, kwargs, _ = message.payload
        try:
            _fits(job, Envelope.read(message.headers), args, kwargs)
        except ContractError as error:
            raise Misfit(Reason.CONTRACT, str(error)) from error


def message_of(letter: DeadLetter, accept: Any, queue: str = "") -> Message:
    """The message that a dead letter was.

    Args:
        letter: which.
        accept: Kombu's set of the serializers that are accepted.
        queue: where it is to be, by default where it was.
    """
    return Message(
        body=letter.body,
        headers=dict(letter.headers),
        content_type=letter.content_type or UNKNOWN_TYPE,
        content_encoding=letter.content_encoding or "binary",
        accept=accept,
        delivery_info={"routing_key": queue or letter.queue},
        properties=letter.properties,
    )


def _fits(job: Job[Any, Any, Any], envelope: Envelope, args: Any, kwargs: Any) -> None:
    contract = job.contract_for(envelope.contract)
    if (envelope.version or 0) > contract.contract_version:
        known = f"{contract.contract_version} of {contract.contract_name}"
        why = f"it is of version {envelope.version}, this code knows {known}"
        raise Misfit(Reason.TOO_NEW, why)
    received(contract, args, kwargs, envelope)

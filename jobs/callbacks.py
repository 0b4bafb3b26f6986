"""What a callback is told: a job or a URL of the sender's choice, when a job has ended."""

from __future__ import annotations

from typing import Any, Generic, TypeVar
from uuid import NAMESPACE_OID, uuid5

from umbel.config.errors import ContractError
from umbel.jobs.contracts import Message
from umbel.jobs.webhooks import WebhookCall, checked_url, signed_with
from umbel.jobs.wire import ON_FAILURE, ON_SUCCESS

R = TypeVar("R")


class Completed(Message, Generic[R], name="umbel.completed", version=1):
    """A job has succeeded.

        @app.job(name="orders.shipped")
        def shipped(message: Completed[Receipt]) -> None: ...

    Attributes:
        job: its name.
        job_id: its id.
        result: what it returned.
        correlation_id: joins all that one request set off.
    """

    job: str
    job_id: str
    result: R
    correlation_id: str


class Failed(Message, name="umbel.failed", version=1):
    """A job has failed for good; its message is in the dead letters.

    Attributes:
        job: its name.
        job_id: its id.
        reason: why, as the dead letters say it: ``failed``, ``timed-out``, ``crashed`` …
        error: in one line, ``"ValueError: no such picture"``.
        correlation_id: joins all that one request set off.
    """

    job: str
    job_id: str
    reason: str
    error: str
    correlation_id: str


def is_callback(contract: type[Message]) -> bool:
    """Whether messages of this class are written by workers: any number of jobs may take them."""
    return issubclass(contract, Completed | Failed | WebhookCall)


def callbacks(job: Any, on_success: Any, on_failure: Any) -> dict[str, dict[str, str]]:
    """The headers that name who is to be told.

    Args:
        job: that is sent.
        on_success: a job that takes `Completed`, a URL, or None.
        on_failure: a job that takes `Failed`, a URL, or None.

    Raises:
        ContractError: one of them takes something else, or is no URL for callbacks.
        SettingsError: there is no secret to sign a callback to a URL with.
    """
    headers = {}
    if isinstance(on_success, str):
        headers[ON_SUCCESS] = _url(job, "on_success", on_success)
    elif on_success is not None:
        _check(job, "on_success", on_success, Completed)
        _check_result(job, on_success)
        headers[ON_SUCCESS] = _address(on_success)
    if isinstance(on_failure, str):
        headers[ON_FAILURE] = _url(job, "on_failure", on_failure)
    elif on_failure is not None:
        _check(job, "on_failure", on_failure, Failed)
        headers[ON_FAILURE] = _address(on_failure)
    return headers


def callback_id(job_id: str, which: str) -> str:
    """The id of a callback: the same when a job that ran once more tells it again."""
    return str(uuid5(NAMESPACE_OID, f"{job_id}/{which}"))


def _url(job: Any, which: str, url: str) -> dict[str, str]:
    settings = job.app.settings
    try:
        checked_url(url, settings)
    except ValueError as error:
        raise ContractError(job.contract.contract_name, [f"{which}={error}"]) from error
    signed_with(settings)
    return {"url": url}


def _check(job: Any, which: str, callback: Any, wanted: type[Message]) -> None:
    contract = getattr(callback, "contract", None)
    if not (isinstance(contract, type) and issubclass(contract, wanted)):
        wish = f"{which}= takes a job whose message is {wanted.__name__}, or a URL"
        problem = f"{wish}, not {callback!r}"
        raise ContractError(job.contract.contract_name, [problem])
    if callback.work_queue.shards:
        problem = f"{which}={callback.name}: a callback is sent by a worker that has no shard_key"
        raise ContractError(job.contract.contract_name, [problem])


def _check_result(job: Any, callback: Any) -> None:
    taken = callback.contract.model_fields["result"].annotation
    if taken not in {Any, R, job.result_annotation}:
        problem = (
            f"on_success={callback.name} takes Completed[{_name(taken)}], "
            f"and {job.name} returns {_name(job.result_annotation)}"
        )
        raise ContractError(job.contract.contract_name, [problem])


def _name(annotation: Any) -> str:
    return getattr(annotation, "__name__", None) or str(annotation)


def _address(callback: Any) -> dict[str, str]:
    return {"job": callback.name, "queue": callback.work_queue.name}

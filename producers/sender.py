"""Sending: where each message goes out, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

from kombu.exceptions import OperationalError
from redis.exceptions import ConnectionError as StoreConnectionError
from redis.exceptions import TimeoutError as StoreTimeoutError

from umbel.config.errors import BrokerUnavailable, ContractError, StoreRequired
from umbel.jobs.context import current
from umbel.jobs.handle import Receipt
from umbel.jobs.job import Job
from umbel.jobs.records import Records
from umbel.jobs.wire import CORRELATION_ID, TRACKED, Checked, Envelope, Sealed, shown

Options = dict[str, Any]


class Sender:
    """The producer side of one app.

    Args:
        records: what is known of tracked jobs, as a function, since a producer that tracks
            nothing needs no store.
        broker_name: the broker's URL without its password, for errors, as a function likewise.
        timeout_s: longest time of a send, for errors.
    """

    def __init__(
        self, records: Callable[[], Records], broker_name: Callable[[], str], timeout_s: float
    ) -> None:
        self._records = records
        self._broker_name = broker_name
        self._timeout_s = timeout_s

    def send(self, job: Job[Any, Any, Any], message: Any, options: Options) -> Receipt:
        """Fire and forget; tracked, without a result, only where the sender named the job."""
        tracked = "task_id" in options
        return Receipt(self._publish(job, message, options, tracked, ignore_result=True), job.name)

    def request(self, job: Job[Any, Any, Any], message: Any, options: Options) -> str:
        """Tracked; returns the job's id."""
        self._records()  # no store is an error before anything is sent
        return self._publish(job, message, options, True, ignore_result=False)

    def _publish(
        self,
        job: Job[Any, Any, Any],
        message: Any,
        options: Options,
        tracked: bool,
        ignore_result: bool,
    ) -> str:
        headers = {TRACKED: tracked, **options.pop("headers", {})}
        with self._reachable(job.name):
            result = job.apply_async(
                (message,), headers=headers, ignore_result=ignore_result, **options
            )
        return str(result.id)

    def outgoing(
        self, job: Job[Any, Any, Any], args: Any, kwargs: Any, options: Options
    ) -> tuple[tuple[Checked], Options]:
        """What Celery is to send, from whatever it was asked to: `delay`, a chain, beat, by name.

        Returns:
            The one argument, checked, and Celery's options with the queue and our headers.

        Raises:
            ContractError: there is not exactly one argument, or it does not fit the contract.
        """
        payload = _only_argument(job, args, kwargs)
        options["queue"] = options.get("queue") or job.work_queue.name
        if isinstance(payload, Checked):
            return (payload,), options
        message = job.contract.checked(payload)
        options["task_id"] = job_id = options.get("task_id") or str(uuid4())
        given = dict(options.get("headers") or {})
        wanted = given.get(TRACKED, not options.get("ignore_result"))
        tracked = wanted and self._track(job_id, job.name)
        envelope = Envelope.first(message, *_causes(given, job_id), tracked=tracked)
        options["headers"] = {**given, **envelope.headers()}
        options["argsrepr"] = shown(message)
        options["kwargsrepr"] = ""
        return (Checked(message.payload()),), options

    def _track(self, job_id: str, name: str) -> bool:
        try:
            self._records().queued(job_id, name)
        except StoreRequired:
            return False  # `delay` and `send` work without a store; `request` has asked before
        return True

    @contextmanager
    def _reachable(self, name: str) -> Iterator[None]:
        try:
            yield
        except (OperationalError, StoreConnectionError, StoreTimeoutError) as error:
            raise BrokerUnavailable(
                f"{name} was not taken by {self._broker_name()} within {self._timeout_s:g} s "
                f"({error}). Is the server up? If it may have been taken, repeat the send with the "
                "same job_id."
            ) from error


def _only_argument(job: Job[Any, Any, Any], args: Any, kwargs: Any) -> Any:
    if kwargs or not isinstance(args, list | tuple) or len(args) != 1:
        given = f"{len(args or ())} positional and {len(kwargs or {})} keyword arguments"
        raise ContractError(job.contract.contract_name, [f"expected one message, got {given}"])
    payload = args[0].value if isinstance(args[0], Sealed) else args[0]
    if not isinstance(payload, job.contract | Mapping) and not hasattr(payload, "model_dump"):
        problem = f"expected a {job.contract.__name__} or a mapping, got {type(payload).__name__}"
        raise ContractError(job.contract.contract_name, [problem])
    return payload


def _causes(headers: Mapping[str, Any], job_id: str) -> tuple[str, str | None]:
    """Correlation and causation id: given, or those of the job that we are in."""
    running = current.get()
    inherited = running.correlation_id if running else ""
    return headers.get(CORRELATION_ID) or inherited or job_id, running.job_id if running else None

"""A job: a function with a contract, and a Celery task all the same."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, get_type_hints

from celery.app.task import Task
from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import to_json
from typing_extensions import TypeVar as DefaultingTypeVar

from umbel.config.settings import Settings
from umbel.config.store import Store
from umbel.jobs.context import JobContext
from umbel.jobs.contracts import Message, contract_of, in_clear, mentions_secrets
from umbel.jobs.handle import JobHandle, Receipt
from umbel.jobs.records import Records
from umbel.jobs.retry import Retry
from umbel.jobs.wire import CORRELATION_ID, Sealed, shown
from umbel.routing.queues import WorkQueue

M = TypeVar("M", bound=Message)
R = TypeVar("R")
# What a call inline returns: the result, or for `async def` something to await.
C = DefaultingTypeVar("C", default=R)


class JobApp(Protocol):
    """What a job needs of its app."""

    @property
    def settings(self) -> Settings: ...
    @property
    def store(self) -> Store | None: ...
    @property
    def records(self) -> Records: ...
    @property
    def sender(self) -> JobSender: ...
    def deliver(self, job: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One delivery, from payload to settlement."""


class JobSender(Protocol):
    """What a job needs of the producer side, which it does not import."""

    def send(self, job: Any, message: Message, options: dict[str, Any]) -> Receipt:
        """Fire and forget."""

    def request(self, job: Any, message: Message, options: dict[str, Any]) -> str:
        """Tracked; returns the job's id."""


class Job(Task, Generic[M, R, C]):
    """A function that consumes one kind of message.

    Attributes:
        name: the job's name: its contract's wire name unless another was given.
        contract: the class of its messages.
        work_queue: where its messages wait.
        retry_policy: when a failed run is followed by another; None for never.
        timeout_s: longest time of a run, in seconds; None for no limit.
        max_deliveries: runs that may end without an outcome before the dead letters.
    """

    app: JobApp
    contract: type[M]
    function: Callable[..., C]
    work_queue: WorkQueue
    retry_policy: Retry | None = None
    timeout_s: float | None = None
    max_deliveries: int | None = None
    wants_context: bool = False
    is_async: bool = False
    result_annotation: Any = Any

    if TYPE_CHECKING:

        @property
        def request(self) -> _Requests[M, R]: ...

    else:
        request = property(lambda self: _Requests(self))  # noqa: PLW0108  defined below

    # Celery's own: the contract checks in place of the call signature, retries are counted by the
    # policy, and the record says what runs.
    abstract = True
    typing = False
    max_retries = None
    track_started = False
    Request = "umbel.consumers.request:Request"

    if TYPE_CHECKING:

        def __call__(self, message: M, context: JobContext | None = None) -> C: ...

    else:

        def __call__(self, *args, **kwargs):
            """Inline, with a message: just runs the function.

            Celery's tracer comes here too, with the JSON of a delivery.
            """
            if not (args and isinstance(args[0], Message)):
                return self.run(*args, **kwargs)
            return self._inline(*args, **kwargs)

    def _inline(self, message: M, context: JobContext | None = None) -> C:
        arguments = (message, context or JobContext()) if self.wants_context else (message,)
        return self.function(*arguments)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """One delivery of a message, in the process that a worker chose for it."""
        return self.app.deliver(self, args, kwargs)

    def send(
        self,
        message: M,
        *,
        delay_s: float | None = None,
        expires_s: float | None = None,
        correlation_id: str | None = None,
        job_id: str | None = None,
    ) -> Receipt:
        """Fire and forget: returns when the broker has the message. No result is kept.

        Args:
            message: checked against the contract again, since it may have been changed.
            delay_s: seconds before it may run.
            expires_s: seconds after which it is dropped instead of run.
            correlation_id: joins all that one request set off; by default that of the job in
                which this is called, else the new job's id.
            job_id: name it yourself, and repeating the send after an uncertain failure is safe:
                a copy of a job that has ended is dropped.

        Raises:
            ContractError: the message does not fit; nothing was sent.
            BrokerUnavailable: no answer within ``publish_timeout_s``.
        """
        options = _options(delay_s, expires_s, correlation_id, job_id)
        return self.app.sender.send(self, message, options)

    async def asend(self, message: M, **options: Any) -> Receipt:
        """`send` without blocking the event loop; the same options."""
        return await asyncio.to_thread(self.send, message, **options)

    async def arequest(self, message: M, **options: Any) -> JobHandle[R]:
        """`request` without blocking the event loop; the same options."""
        return await asyncio.to_thread(self.request.__call__, message, **options)

    def handle(self, job_id: str) -> JobHandle[R]:
        """The handle of a job of this kind; `app.handle` finds the kind by itself."""
        return JobHandle(job_id, self.app.records, self.decode_result)

    def encode_result(self, result: R) -> Sealed:
        """A result as JSON types, after its type was checked.

        Raises:
            pydantic.ValidationError: it is not what the return annotation says.
        """
        checked = self._result_adapter.validate_python(result)
        dump = partial(self._result_adapter.dump_python, checked)
        return Sealed(in_clear(dump, secret=self._result_has_secrets), shown(checked))

    def decode_result(self, data: Any) -> R:
        """The other way round."""
        return self._result_adapter.validate_json(to_json(data))

    @cached_property
    def _result_adapter(self) -> TypeAdapter[R]:
        return TypeAdapter(self.result_annotation)

    @cached_property
    def _result_has_secrets(self) -> bool:
        try:
            return mentions_secrets(self._result_adapter.json_schema(mode="serialization"))
        except PydanticInvalidForJsonSchema:
            return False  # a type without a schema is none of Pydantic's secret types


class _Requests(Generic[M, R]):
    """``job.request``: called it sends; for Celery it is the context of the run, as in any task."""

    _job: Job[M, R, Any]

    def __init__(self, job: Job[M, R, Any]) -> None:
        object.__setattr__(self, "_job", job)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._job._get_request(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._job._get_request(), name, value)

    def __call__(
        self,
        message: M,
        *,
        delay_s: float | None = None,
        expires_s: float | None = None,
        correlation_id: str | None = None,
        job_id: str | None = None,
    ) -> JobHandle[R]:
        """Send, tracked: the handle knows the state, the progress and the typed result.

        Takes what `Job.send` takes.

        Raises:
            ContractError: the message does not fit; nothing was sent.
            BrokerUnavailable: no answer within ``publish_timeout_s``.
            StoreRequired: there is no state store.
        """
        options = _options(delay_s, expires_s, correlation_id, job_id)
        return self._job.handle(self._job.app.sender.request(self._job, message, options))


def _options(
    delay_s: float | None,
    expires_s: float | None,
    correlation_id: str | None,
    job_id: str | None,
) -> dict[str, Any]:
    """Celery's names for ours."""
    options = {"countdown": delay_s, "expires": expires_s, "task_id": job_id}
    headers = {CORRELATION_ID: correlation_id} if correlation_id else {}
    return {name: value for name, value in options.items() if value is not None} | {
        "headers": headers
    }


def declare(
    function: Callable[..., Any],
    *,
    queue: WorkQueue,
    name: str | None,
    retry: Retry | None,
    timeout_s: float | None,
    max_deliveries: int | None,
    local_names: dict[str, Any],
    celery_options: dict[str, Any],
) -> Job[Any, Any, Any]:
    """The job that a decorated function becomes; it still has to be registered.

    Raises:
        TypeError: the function's parameters are not a message and, optionally, a `JobContext`.
        ContractError: the message class has no contract.
    """
    hints = get_type_hints(function, localns=local_names)
    contract, wants_context = _parameters(function, hints)
    is_async = inspect.iscoroutinefunction(function)
    attributes = {
        "name": name or contract_of(contract)[0],
        "contract": contract,
        "function": staticmethod(function),
        "work_queue": queue,
        "retry_policy": retry,
        "timeout_s": timeout_s,
        "max_deliveries": max_deliveries or queue.max_deliveries,
        "wants_context": wants_context,
        "is_async": is_async,
        "result_annotation": hints.get("return", Any),
        # Prefork kills at this; an async job is cancelled in its loop first.
        "time_limit": timeout_s and timeout_s + (_GRACE_S if is_async else 0),
        "abstract": False,
        "__doc__": function.__doc__,
        "__module__": function.__module__,
        "__qualname__": function.__qualname__,
        "__wrapped__": staticmethod(function),
    }
    job_class = type(function.__name__, (Job,), attributes | celery_options)
    return cast("Job[Any, Any, Any]", job_class())


_GRACE_S = 5.0
_WANTED = "expected (message: YourMessage) or (message: YourMessage, context: JobContext)"


def _parameters(function: Callable[..., Any], hints: dict[str, Any]) -> tuple[type[Message], bool]:
    parameters = list(inspect.signature(function).parameters.values())
    where = f"job {function.__qualname__}"
    if not 1 <= len(parameters) <= 2:
        raise TypeError(f"{where} takes {len(parameters)} parameters; {_WANTED}")
    contract = hints.get(parameters[0].name)
    if not (isinstance(contract, type) and issubclass(contract, Message)):
        raise TypeError(
            f"{where}: parameter {parameters[0].name!r} is annotated {contract!r}, "
            f"which is no Message class; {_WANTED}"
        )
    if len(parameters) == 2 and hints.get(parameters[1].name) is not JobContext:
        raise TypeError(f"{where}: parameter {parameters[1].name!r} is no JobContext; {_WANTED}")
    return contract, len(parameters) == 2

"""A job: a function with a contract, and a Celery task all the same."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, cast, get_args, get_type_hints

from pydantic import TypeAdapter
from pydantic.errors import PydanticInvalidForJsonSchema
from pydantic_core import to_json
from typing_extensions import TypeVar as DefaultingTypeVar

from umbel.config.settings import Settings
from umbel.config.store import Store
from umbel.jobs.callbacks import Completed, Failed, callbacks
from umbel.jobs.canvas import JobSignature
from umbel.jobs.context import JobContext
from umbel.jobs.contracts import Message, contract_of, in_clear, mentions_secrets, names_of
from umbel.jobs.handle import JobHandle, Receipt
from umbel.jobs.keys import Key, checked_key, key_of
from umbel.jobs.plan import Order, Plan
from umbel.jobs.records import Records
from umbel.jobs.retry import Retry
from umbel.jobs.wire import CONTRACT, CORRELATION_ID, Sealed, shown
from umbel.routing.queues import Priority, WorkQueue

if TYPE_CHECKING:

    class Task:
        """Celery's has no annotations, and what derives from the unknown fits any parameter."""

        name: str
        _app: Any
        rate_limit: str | None
        time_limit: float | None

        def __getattr__(self, name: str) -> Any: ...

else:
    from celery.app.task import Task

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

    def planned(self, job: type[Any]) -> Plan:
        """How a job is to be run: as it was declared, and as the settings have it."""


class JobSender(Protocol):
    """What a job needs of the producer side, which it does not import."""

    def send(self, job: Any, message: Message, options: dict[str, Any]) -> Receipt:
        """Fire and forget."""

    def send_many(self, job: Any, messages: Iterable[Message]) -> list[Receipt]:
        """Fire and forget, together."""

    def request(self, job: Any, message: Message, options: dict[str, Any]) -> str:
        """Tracked; returns the job's id."""


class Job(Task, Generic[M, R, C]):
    """A function that consumes one kind of message.

    Attributes:
        name: the job's name: its contract's wire name unless another was given.
        contract: the class of its messages.
        declared: what code says of how it is run.
        shard_key: what decides on the shard, where the queue has shards.
        concurrency_key: of messages with the same one runs at a time.
        idempotency_key: of messages with the same one is run.
    """

    app: JobApp
    contract: type[M]
    function: Callable[..., C]
    declared: Plan
    section = "jobs"  # of the settings
    shard_key: Key | None = None
    concurrency_key: Key | None = None
    idempotency_key: Key | None = None
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

    @cached_property
    def plan(self) -> Plan:
        """How it is run. The settings are read when this is first asked for, and not before."""
        return self.app.planned(type(self))

    @property
    def work_queue(self) -> WorkQueue:
        """Where its messages wait."""
        return self.plan.queue

    @property
    def retry_policy(self) -> Retry | None:
        """When a failed run is followed by another; None for never."""
        return self.plan.retry

    @property
    def timeout_s(self) -> float | None:
        """Longest time of a run, in seconds; None for no limit."""
        return self.plan.timeout_s

    @property
    def max_deliveries(self) -> int | None:
        """Runs that may end without an outcome before the dead letters; None for the setting's."""
        return self.plan.max_deliveries

    @classmethod
    def on_bound(cls, app: Any) -> None:
        """Called by Celery before it reads a task's limits."""
        plan = app.planned(cls)
        if plan.rate_limit:
            cls.rate_limit = plan.rate_limit
        if plan != cls.declared:
            cls.time_limit = plan.limit_s(cls.is_async) or cls.time_limit

    def contract_for(self, name: str | None) -> type[Message]:
        """The class of a message.

        Args:
            name: of its contract, as its producer said.
        """
        return self.contract

    @property
    def names(self) -> tuple[str, ...]:
        """Its name, then the others under which messages come: its contract's aliases."""
        named_by_contract = self.name == vars(self.contract).get("contract_name")
        return names_of(self.contract) if named_by_contract else (self.name,)

    def name_for(self, headers: Mapping[str, Any]) -> str:
        """The name to send a message on under: the one by which it came.

        A worker that knows no newer name may get the copy.

        Args:
            headers: the message's.
        """
        came_as = headers.get(CONTRACT)
        return next((name for name in self.names if name == came_as), self.name)

    def queue_for(self, message: M, priority: Priority | None = None) -> str:
        """The name of the queue that a message goes to.

        Raises:
            ContractError: its queue has shards, and the message has no key.
            ValueError: its queue has no priorities.
        """
        if self.work_queue.shards and self.shard_key:
            return self.work_queue.shard(key_of("shard_key", self.shard_key, message))
        return self.work_queue.at(priority)

    def run(self, *args: Any, **kwargs: Any) -> Any:
        """One delivery of a message, in the process that a worker chose for it."""
        return self.app.deliver(self, args, kwargs)

    def signature(self, args: Any = None, *more: Any, **options: Any) -> JobSignature:
        """Celery's, which refuses a chain that can never fit."""
        return JobSignature(self, args, *more, **{"app": self.app, **options})

    subtask = signature

    def send(
        self,
        message: M,
        *,
        on_success: Job[Completed[R], Any, Any] | str | None = None,
        on_failure: Job[Failed, Any, Any] | str | None = None,
        delay_s: float | None = None,
        expires_s: float | None = None,
        priority: Priority | None = None,
        correlation_id: str | None = None,
        job_id: str | None = None,
    ) -> Receipt:
        """Fire and forget: returns when the broker has the message. No result is kept.

        Args:
            message: checked against the contract again, since it may have been changed.
            on_success: a job that is sent the result when this one has succeeded, or a URL.
            on_failure: a job that is told when this one has failed for good, or a URL.
            delay_s: seconds before it may run.
            expires_s: seconds after which it is dropped instead of run.
            priority: among the messages of a queue with priorities.
            correlation_id: joins all that one request set off; by default that of the job in
                which this is called, else the new job's id.
            job_id: name it yourself, and repeating the send after an uncertain failure is safe:
                a copy of a job that has ended is dropped.

        Raises:
            ContractError: the message or a callback does not fit; nothing was sent.
            SettingsError: a callback to a URL, and no ``webhook_secrets``.
            BrokerUnavailable: no answer within ``publish_timeout_s``.
        """
        options = _options(self.work_queue, delay_s, expires_s, priority, correlation_id, job_id)
        options["headers"] |= callbacks(self, on_success, on_failure)
        return self.app.sender.send(self, message, options)

    def send_many(self, messages: Iterable[M]) -> list[Receipt]:
        """Fire and forget, many together: faster than one by one, and in their order.

        Args:
            messages: all are checked before the first is sent.

        Returns:
            A receipt for each, in the same order.

        Raises:
            ContractError: one does not fit; nothing was sent.
            BrokerUnavailable: no answer in time; some may have been sent.
        """
        return self.app.sender.send_many(self, messages)

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
        checked = self._result_adapter.validator.validate_python(result)
        dump = partial(self._result_adapter.serializer.to_python, checked)
        return Sealed(in_clear(dump, secret=self._result_has_secrets), shown(checked))

    def decode_result(self, data: Any) -> R:
        """The other way round; fields of newer workers are let through."""
        return self._result_adapter.validate_json(to_json(data), extra="ignore")

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
        on_success: Job[Completed[R], Any, Any] | str | None = None,
        on_failure: Job[Failed, Any, Any] | str | None = None,
        delay_s: float | None = None,
        expires_s: float | None = None,
        priority: Priority | None = None,
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
        queue = self._job.work_queue
        options = _options(queue, delay_s, expires_s, priority, correlation_id, job_id)
        options["headers"] |= callbacks(self._job, on_success, on_failure)
        return self._job.handle(self._job.app.sender.request(self._job, message, options))


def _options(  # noqa: PLR0917  as the two callers name them
    queue: WorkQueue,
    delay_s: float | None,
    expires_s: float | None,
    priority: Priority | None,
    correlation_id: str | None,
    job_id: str | None,
) -> dict[str, Any]:
    """Celery's names for ours."""
    options: dict[str, Any] = {"headers": {}}
    if delay_s is not None:
        options["countdown"] = delay_s
    if expires_s is not None:
        options["expires"] = expires_s
    if job_id is not None:
        options["task_id"] = job_id
    if priority:
        options["queue"] = queue.at(priority)
    if correlation_id:
        options["headers"][CORRELATION_ID] = correlation_id
    return options


def declare(
    function: Callable[..., Any],
    *,
    queue: WorkQueue,
    name: str | None,
    retry: Retry | None,
    timeout_s: float | None,
    max_deliveries: int | None,
    order: Order = "strict",
    keys: Mapping[str, Key | None],
    local_names: dict[str, Any],
    celery_options: dict[str, Any],
    base: type[Job[Any, Any, Any]] = Job,
    read: Callable[[Any], dict[str, Any]] | None = None,
) -> Job[Any, Any, Any]:
    """The job that a decorated function becomes; it still has to be registered.

    Args:
        keys: by the names of `Job`'s attributes.
        base: what kind of job.
        read: what the annotation of the first parameter says of the job: its attributes, with the
            ``contract`` among them; raises TypeError.

    Raises:
        TypeError: the function's parameters are not a message and, optionally, a `JobContext`,
            a key is no field of the message, or shards lack one.
        ValueError: there is no such order.
        ContractError: the message class has no contract.
    """
    if bool(queue.shards) != bool(keys["shard_key"]):
        raise TypeError(
            f"job {function.__qualname__}: shards of a queue and shard_key= of its jobs go "
            f"together, and here shards={queue.shards} and shard_key={keys['shard_key']!r}"
        )
    if order not in get_args(Order):
        raise ValueError(
            f"job {function.__qualname__}: order={order!r}; expected 'strict' or 'relaxed'"
        )
    hints = get_type_hints(function, localns=local_names)
    consumed, wants_context = _parameters(function, hints, read or _message_class)
    is_async = inspect.iscoroutinefunction(function)
    attributes = {
        "name": name or contract_of(consumed["contract"])[0],
        **consumed,
        **{which: checked_key(which, key, consumed["contract"]) for which, key in keys.items()},
        "function": staticmethod(function),
        "declared": (plan := Plan(queue, retry, timeout_s, max_deliveries, order=order)),
        "wants_context": wants_context,
        "is_async": is_async,
        "result_annotation": hints.get("return", Any),
        "time_limit": plan.limit_s(is_async),
        "abstract": False,
        "__doc__": function.__doc__,
        "__module__": function.__module__,
        "__qualname__": function.__qualname__,
        "__wrapped__": staticmethod(function),
    }
    job_class = type(function.__name__, (base,), attributes | celery_options)
    return cast("Job[Any, Any, Any]", job_class())


_WANTED = "expected (message: YourMessage) or (message: YourMessage, context: JobContext)"


def _parameters(
    function: Callable[..., Any], hints: dict[str, Any], read: Callable[[Any], dict[str, Any]]
) -> tuple[dict[str, Any], bool]:
    parameters = list(inspect.signature(function).parameters.values())
    where = f"job {function.__qualname__}"
    if not 1 <= len(parameters) <= 2:
        raise TypeError(f"{where} takes {len(parameters)} parameters; {_WANTED}")
    try:
        consumed = read(hints.get(parameters[0].name))
    except TypeError as error:
        raise TypeError(f"{where}: parameter {parameters[0].name!r} {error}; {_WANTED}") from None
    if len(parameters) == 2 and hints.get(parameters[1].name) is not JobContext:
        raise TypeError(f"{where}: parameter {parameters[1].name!r} is no JobContext; {_WANTED}")
    return consumed, len(parameters) == 2


def _message_class(annotation: Any) -> dict[str, Any]:
    if isinstance(annotation, type) and issubclass(annotation, Message):
        return {"contract": annotation}
    raise TypeError(f"is annotated {annotation!r}, which is no Message class")

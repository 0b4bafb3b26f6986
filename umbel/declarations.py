"""What an app declares: jobs, subscribers, sagas, and what these bring along."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol, TypeVar, overload
from uuid import uuid4

from celery.local import PromiseProxy

from umbel.config.errors import ContractError
from umbel.consumers import webhooks
from umbel.consumers.sagas import PERSISTENT, tellers
from umbel.jobs.callbacks import is_callback
from umbel.jobs.context import JobContext
from umbel.jobs.contracts import Event, Message, names_of
from umbel.jobs.job import Job, declare
from umbel.jobs.keys import Key
from umbel.jobs.plan import Order, Plan, planned
from umbel.jobs.retry import Retry
from umbel.jobs.saga import Saga
from umbel.jobs.saga_steps import Step
from umbel.jobs.subscription import Subscription, consumed, patterns_of
from umbel.jobs.versions import checked_versions
from umbel.jobs.webhooks import WEBHOOK
from umbel.parts import Parts
from umbel.routing.queues import WorkQueue, queue_of_subscriber, webhook_queue

M = TypeVar("M", bound=Message)
R = TypeVar("R")


class JobDecorator(Protocol):
    """Makes a function a job, and keeps its types."""

    @overload
    def __call__(
        self, function: Callable[[M], Coroutine[Any, Any, R]], /
    ) -> Job[M, R, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(
        self, function: Callable[[M, JobContext], Coroutine[Any, Any, R]], /
    ) -> Job[M, R, Coroutine[Any, Any, R]]: ...
    @overload
    def __call__(self, function: Callable[[M], R], /) -> Job[M, R, R]: ...
    @overload
    def __call__(self, function: Callable[[M, JobContext], R], /) -> Job[M, R, R]: ...
    def __call__(self, function: Any, /) -> Any:
        """Called with the function."""


class Declarations(Parts):
    """An app that jobs, subscribers and sagas can be declared on.

    Args:
        name: the app's.
        broker: where messages wait.
        options: of `Settings`, or of Celery's own.

    Attributes:
        jobs: by all their names; subscribers are among them.
        subscriptions: by the names of their queues.
        sagas: by their names.
        contracts: by all their names.
    """

    def __init__(self, name: str, broker: str | None = None, **options: Any) -> None:
        self.jobs: dict[str, Job[Any, Any, Any]] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.sagas: dict[str, Saga[Any]] = {}
        self.contracts: dict[str, type[Message]] = {}
        self._declared_queues: dict[str, WorkQueue] = {}
        self._instance = uuid4().hex[:12]  # children that a pool forks share it
        super().__init__(name, broker, **options)
        self._pending.append(PromiseProxy(self._declare_webhook))

    @overload
    def job(
        self, function: Callable[[M], Coroutine[Any, Any, R]], /
    ) -> Job[M, R, Coroutine[Any, Any, R]]: ...

    @overload
    def job(
        self, function: Callable[[M, JobContext], Coroutine[Any, Any, R]], /
    ) -> Job[M, R, Coroutine[Any, Any, R]]: ...

    @overload
    def job(self, function: Callable[[M], R], /) -> Job[M, R, R]: ...

    @overload
    def job(self, function: Callable[[M, JobContext], R], /) -> Job[M, R, R]: ...

    @overload
    def job(
        self,
        *,
        queue: WorkQueue | str | None = None,
        name: str | None = None,
        retry: Retry | None = None,
        timeout_s: float | None = None,
        max_deliveries: int | None = None,
        shard_key: Key | None = None,
        order: Order = "strict",
        concurrency_key: Key | None = None,
        idempotency_key: Key | None = None,
        **celery_options: Any,
    ) -> JobDecorator: ...

    def job(self, *function: Any, **options: Any) -> Any:
        """Make a function a `Job`.

        Args:
            function: takes a message and, if it likes, a `JobContext`; plain or ``async def``.
                Its annotations are the contract and the result's type.
            queue: the work queue, by default one named like the app.
            name: the job's name, by default its contract's.
            retry: when a failed run is followed by another, by default never.
            timeout_s: longest time of a run in seconds: enforced on prefork and for async jobs,
                elsewhere ``context.cancelled`` turns true.
            max_deliveries: runs begun that may end without an outcome, because the process died,
                before the message goes to the dead letters.
            shard_key: of a queue with shards: messages with the same key go to the same shard, and
                are run in the order of their sending. The name of a field, or a function of the
                message; likewise the two keys below.
            order: ``"relaxed"`` lets the messages behind one that is to be retried run before it.
            concurrency_key: of messages with the same key one is run at a time, on all machines.
            idempotency_key: of messages with the same key one is run, and what it returned is the
                result of the others; for ``idempotency_ttl_s``. One that failed does not count.
            celery_options: options of Celery's tasks, such as ``rate_limit``.

        Raises:
            TypeError: the function is not of that form.
            ContractError: the message has no contract, or another one has its name.
        """
        local_names = sys._getframe(1).f_locals
        decorate: Any = partial(self._declare, local_names=local_names, **options)
        return decorate(*function) if function else decorate

    def _declare(
        self,
        function: Callable[..., Any],
        *,
        local_names: dict[str, Any],
        queue: WorkQueue | str | None = None,
        name: str | None = None,
        retry: Retry | None = None,
        timeout_s: float | None = None,
        max_deliveries: int | None = None,
        shard_key: Key | None = None,
        order: Order = "strict",
        concurrency_key: Key | None = None,
        idempotency_key: Key | None = None,
        base: type[Job[Any, Any, Any]] = Job,
        read: Callable[[Any], dict[str, Any]] | None = None,
        **celery_options: Any,
    ) -> Job[Any, Any, Any]:
        job = declare(
            function,
            queue=WorkQueue.named(queue or self.main),
            name=name,
            retry=retry,
            timeout_s=timeout_s,
            max_deliveries=max_deliveries,
            order=order,
            keys={
                "shard_key": shard_key,
                "concurrency_key": concurrency_key,
                "idempotency_key": idempotency_key,
            },
            local_names=local_names,
            celery_options=celery_options,
            base=base,
            read=read,
        )
        self._check_names(job)
        self.jobs.update(dict.fromkeys(job.names, job))
        if isinstance(job, Subscription):
            self.subscriptions[job.declared.queue.parts[0]] = job
        self._add_queue(job.declared.queue)
        self._register(job)
        if "amqp" in self.__dict__:
            self.amqp.declared_late(job.work_queue)
        return job

    def subscribe(
        self,
        *what: type[Event] | str,
        name: str | None = None,
        queue: WorkQueue | str | None = None,
        broadcast: bool = False,
        **options: Any,
    ) -> JobDecorator:
        """Make a function a subscriber: called with each event, once.

            @app.subscribe(ImageResized)
            def index(event: ImageResized) -> None: ...

        Its queue keeps events from its first declaration by a worker on, also while nobody is
        there; processes that declare the same subscriber share them. What one subscriber does with
        an event (fail, retry, take long) is nothing to the others.

        Args:
            what: event classes, and patterns of their names: ``"image.*"``, ``"image.#"``. The
                function takes the class, or for several a union of them or `Event`.
            name: the subscriber's, by default the function's. It is on the broker: who renames it
                leaves a queue behind that goes on filling, until `unsubscribe`.
            queue: where its events wait, by default one named after the app and the subscriber.
            broadcast: each worker that is up gets each event (one of its processes runs it), and
                nothing is kept for those that are not: to drop a cache, to read a configuration.
            options: what `job` takes besides (``retry=``, ``timeout_s=``, ``max_deliveries=`` …).

        Raises:
            TypeError: the function is not of that form.
            ValueError: a pattern is none.
            ContractError: another event has its name, or another subscriber its.
        """
        patterns = patterns_of(what)
        local_names = sys._getframe(1).f_locals

        def decorate(function: Any) -> Any:
            own_name = name or function.__name__
            own_queue = WorkQueue.named(queue or queue_of_subscriber(self.main, own_name))
            return self._declare(
                function,
                local_names=local_names,
                queue=replace(
                    own_queue, events=patterns, instance=self._instance if broadcast else None
                ),
                name=own_name,
                base=Subscription,
                read=consumed,
                **options,
            )

        return decorate

    def saga(
        self,
        name: str,
        steps: Sequence[Step[M]],
        *,
        message: type[M] | None = None,
        queue: WorkQueue | str | None = None,
    ) -> Saga[M]:
        """Declare a saga: its steps are done one after the other, or what they did is undone.

        Args:
            name: the saga's, lower case words joined by dots.
            steps: in their order, each with what undoes it.
            message: what it is started with, by default what the steps without ``message=`` take.
            queue: of the saga's own two jobs, which the workers run between the steps; by default
                one named like the app.

        Raises:
            ContractError: the steps do not fit together, or there is such a saga already.
        """
        if name in self.sagas:
            raise ContractError(name, ["there is a saga of this name already"])
        saga = Saga(self, name, steps, message)
        succeeded, failed = tellers(self, saga)
        saga.told = (
            self.job(name=f"umbel.saga.{name}.succeeded", queue=queue, **PERSISTENT)(succeeded),
            self.job(name=f"umbel.saga.{name}.failed", queue=queue, **PERSISTENT)(failed),
        )
        self.sagas[name] = saga
        return saga

    def _declare_webhook(self) -> None:
        """The job of callbacks to URLs, and its queue, where such callbacks can be signed.

        When the app is finalised: only then may settings be read.
        """
        if self.settings.webhook_secrets:
            self._declare(
                webhooks.poster(self),
                local_names={},
                name=WEBHOOK,
                queue=webhook_queue(self.prefix),
                **webhooks.terms(self.settings),
            )

    @property
    def work_queues(self) -> dict[str, WorkQueue]:
        """By their names, as they are by the settings.

        A queue that all its jobs were moved away from by a setting is still among them: what waits
        there is done.
        """
        declared = {
            name: queue.configured(self.settings) for name, queue in self._declared_queues.items()
        }
        return declared | {job.work_queue.name: job.work_queue for job in self.jobs.values()}

    def planned(self, job: type[Job[Any, Any, Any]]) -> Plan:
        """How a job is to be run: as it was declared, and as the settings have it.

        Raises:
            SettingsError: these do not go together.
        """
        return planned(job, self.settings, self._declared_queues)

    def queue_of(self, subscriber: str) -> str:
        """The name of a subscriber's queue, as far as this app knows.

        Args:
            subscriber: its name; it need not be declared any more.
        """
        queues = {job.name: queue for queue, job in self.subscriptions.items()}
        return queues.get(subscriber) or queue_of_subscriber(self.main, subscriber)

    def _check_names(self, job: Job[Any, Any, Any]) -> None:
        for contract in job.events if isinstance(job, Subscription) else (job.contract,):
            if contract is not Event and not is_callback(contract):
                self._add_contract(contract)
        if is_callback(job.contract) and job.name == job.contract.contract_name:
            raise ContractError(job.name, ["any number of jobs may take it: give this one a name="])
        if taken := [name for name in job.names if name in self.jobs]:
            raise ContractError(
                job.name,
                [
                    f"there is a job {taken[0]!r} already; one job consumes a message, "
                    "so give this one a contract of its own or a name="
                ],
            )

    def _add_contract(self, contract: type[Message]) -> None:
        names = names_of(contract)
        for name in names:
            known = self.contracts.get(name, contract)
            if known is not contract:
                other = f"{known.__module__}.{known.__qualname__}"
                raise ContractError(name, [f"is the name of {other} already; choose another name="])
        checked_versions(contract)
        self.contracts.update(dict.fromkeys(names, contract))

    def _add_queue(self, queue: WorkQueue) -> None:
        known = self._declared_queues.setdefault(queue.name, queue)
        if known != queue:
            raise ValueError(f"queue {queue.name!r} is declared twice: {known}, {queue}")

    def _register(self, job: Job[Any, Any, Any]) -> None:
        """As Celery's own lazy tasks: bound when the app is finalised, so nothing is read yet."""

        def register() -> Job[Any, Any, Any]:
            for name in reversed(job.names):  # its own the last: Celery's logs say that one
                self._tasks[name] = job
            return job

        type(job)._app = self
        if self.finalized:
            register().bind(self)
        else:
            self._pending.append(PromiseProxy(register))

"""The `Umbel` app: a Celery app whose jobs have contracts."""

from __future__ import annotations

import difflib
import inspect
import os
import sys
from collections.abc import Callable, Coroutine
from functools import cached_property, partial
from typing import Any, Protocol, TypeVar, overload

from celery import Celery
from celery.app import backends
from celery.app.defaults import DEFAULTS
from celery.local import PromiseProxy
from kombu.utils.url import maybe_sanitize_url

from umbel.config.celery import celery_defaults
from umbel.config.errors import ContractError, SettingsError
from umbel.config.settings import Settings
from umbel.config.store import Store, required, server_url, store_url
from umbel.consumers.deadletters import DeadLetters
from umbel.consumers.delivery import deliver
from umbel.jobs.backend import recording
from umbel.jobs.blobs import BlobStore
from umbel.jobs.context import JobContext
from umbel.jobs.contracts import Message
from umbel.jobs.handle import JobHandle
from umbel.jobs.job import Job, declare
from umbel.jobs.records import Records
from umbel.jobs.retry import Retry
from umbel.producers.sender import Sender
from umbel.routing.queues import WorkQueue, namespace_of
from umbel.routing.valkey import Connection

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


class Umbel(Celery):
    """A Celery app: ``celery -A shop worker | flower | beat`` take it as it is.

    Args:
        name: the app's name; unless ``namespace`` says otherwise it prefixes every key and
            exchange, so that several apps share a broker.
        broker: where messages wait, by default ``embedded://``. ``UMBEL_BROKER_URL`` wins.
        options: any of `Settings` by name (``store_url=``, ``blob_url=``, ``publish_timeout_s=``
            …; the environment wins), or of Celery's own.

    Nothing is read, started or connected before it is needed.
    """

    amqp_cls = "umbel.routing.queues:AMQP"

    def __init__(self, name: str, broker: str | None = None, **options: Any) -> None:
        self._given = {
            key: options.pop(key) for key in list(options) if key in Settings.model_fields
        }
        self._given.setdefault("broker_url", broker)
        _refuse_unknown(options)
        self.jobs: dict[str, Job[Any, Any, Any]] = {}
        self.contracts: dict[str, type[Message]] = {}
        self.work_queues: dict[str, WorkQueue] = {}
        super().__init__(name, **options)

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
        **celery_options: Any,
    ) -> Job[Any, Any, Any]:
        job = declare(
            function,
            queue=WorkQueue.named(queue or self.main),
            name=name,
            retry=retry,
            timeout_s=timeout_s,
            max_deliveries=max_deliveries,
            local_names=local_names,
            celery_options=celery_options,
        )
        self._check_names(job)
        self.jobs[job.name] = job
        self.contracts[job.contract.contract_name] = job.contract
        self._add_queue(job.work_queue)
        self._register(job)
        return job

    def _check_names(self, job: Job[Any, Any, Any]) -> None:
        name = job.contract.contract_name
        known = self.contracts.get(name)
        if known not in {None, job.contract}:
            other = f"{known.__module__}.{known.__qualname__}"
            raise ContractError(name, [f"is the name of {other} already; choose another name="])
        if job.name in self.jobs:
            raise ContractError(
                name,
                [
                    f"there is a job {job.name!r} already; one job consumes a message, "
                    "so give this one a contract of its own or a name="
                ],
            )

    def _add_queue(self, queue: WorkQueue) -> None:
        if self.work_queues.setdefault(queue.name, queue) != queue:
            raise ValueError(
                f"queue {queue.name!r} is declared twice: {self.work_queues[queue.name]}, {queue}"
            )
        if "amqp" in self.__dict__:
            self.amqp.declared_late(queue)

    def _register(self, job: Job[Any, Any, Any]) -> None:
        """As Celery's own lazy tasks: bound when the app is finalised, so nothing is read yet."""

        def register() -> Job[Any, Any, Any]:
            self._tasks[job.name] = job
            return job

        type(job)._app = self
        if self.finalized:
            register().bind(self)
        else:
            self._pending.append(PromiseProxy(register))

    def handle(self, job_id: str) -> JobHandle[Any]:
        """The handle of a tracked job, in any process of the app.

        Raises:
            UnknownJob: it was never tracked, or its record has expired.
        """
        job = self.jobs.get(self.records.read(job_id).name)
        return job.handle(job_id) if job else JobHandle(job_id, self.records, lambda data: data)

    @cached_property
    def settings(self) -> Settings:
        """From the environment, then from the arguments, then the defaults."""
        settings = Settings.load(**self._given)
        if settings.require_broker and settings.broker_url.startswith("embedded:"):
            raise SettingsError(
                "UMBEL_REQUIRE_BROKER is set, and the broker is embedded:// (for one machine): "
                "set UMBEL_BROKER_URL to a server, redis://host:6379/0 or amqp://host"
            )
        return settings

    @property
    def prefix(self) -> str:
        """The prefix of every key and exchange."""
        return namespace_of(self.settings, self.main)

    @cached_property
    def store(self) -> Store | None:
        """The state store, or None where there is none."""
        url = store_url(self.settings, self.conf.broker_url)
        return Store(url, self.settings.publish_timeout_s / 2) if url else None

    @cached_property
    def records(self) -> Records:
        """What is known of tracked jobs.

        Raises:
            StoreRequired: there is no state store.
        """
        store = required(self.store, "tracking a job")
        return Records(store, self.prefix, self.settings.result_ttl_s)

    @cached_property
    def dead_letters(self) -> DeadLetters:
        """Dead letters and quarantine.

        Raises:
            StoreRequired: there is no state store.
        """
        return DeadLetters(required(self.store, "keeping dead letters"), self.prefix)

    @cached_property
    def blobs(self) -> BlobStore:
        """Files by reference."""
        return BlobStore.at(self.settings.blob_url, self.conf.broker_url)

    @cached_property
    def sender(self) -> Sender:
        """The producer side."""
        return Sender(
            records=lambda: self.records,
            broker_name=lambda: maybe_sanitize_url(self.conf.broker_write_url),
            timeout_s=self.settings.publish_timeout_s,
        )

    def deliver(
        self, job: Job[Any, Any, Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """One delivery: what a job's `run` does."""
        return deliver(job, args, kwargs)

    @cached_property
    def Worker(self) -> Any:  # noqa: N802  Celery's name
        return self.subclass_with_self("umbel.consumers.worker:Worker")

    def send_task(self, name: str, args: Any = None, kwargs: Any = None, **options: Any) -> Any:
        """Celery's one way out, for `delay`, chains, beat and names: ours are checked here."""
        if job := self.jobs.get(name):
            args, options = self.sender.outgoing(job, args, kwargs, options)
            kwargs = None
        return super().send_task(name, args, kwargs, **options)

    def _connection(self, url: str, *args: Any, **options: Any) -> Connection:
        """Celery's one way to a connection, for reading and for writing."""
        connection: Connection = super()._connection(server_url(url), *args, **options)
        return connection

    def _get_backend(self) -> Any:
        backend_class, url = backends.by_url(
            self.backend_cls or self.conf.result_backend, self.loader
        )
        return recording(backend_class)(app=self, url=url)

    def _load_config(self) -> Any:
        """Ours just above Celery's own: `add_defaults` would put them above a `celeryconfig`."""
        conf = super()._load_config()
        defaults = self._defaults()
        for layers in (conf.maps, conf.defaults):
            layers.insert(-1, defaults)
        return conf

    def _defaults(self) -> dict[str, Any]:
        # Where `celery -b` puts its URL.
        effective = os.environ.get("CELERY_BROKER_URL") or self.settings.broker_url
        store = store_url(self.settings, effective)
        return celery_defaults(self.settings, self.prefix, server_url(effective), store)


def _refuse_unknown(options: dict[str, Any]) -> None:
    """Celery takes any name, so that a typing error would be a setting that nobody reads."""
    known = {*DEFAULTS, *inspect.signature(Celery.__init__).parameters}
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, [*Settings.model_fields, *known], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingsError(f"{name}: there is no such setting, here or of Celery's{hint}")

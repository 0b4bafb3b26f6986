"""The `Umbel` app: a Celery app whose jobs have contracts."""

from __future__ import annotations

import asyncio
import difflib
import inspect
import os
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload
from uuid import uuid4

from celery import Celery
from celery.app import backends
from celery.app.defaults import DEFAULTS
from celery.local import PromiseProxy
from kombu.utils.url import maybe_sanitize_url

from umbel.config.celery import celery_defaults
from umbel.config.errors import ContractError, SettingsError, UnknownQueue
from umbel.config.settings import Settings
from umbel.config.store import Store, required, server_url, split_master, store_url
from umbel.consumers import followups, webhooks
from umbel.consumers.delivery import deliver
from umbel.consumers.keys import Once
from umbel.consumers.pull import Pulled, apull, pull
from umbel.consumers.replay import DeadLetterOffice
from umbel.consumers.resharding import reshard
from umbel.consumers.sagas import PERSISTENT, tellers
from umbel.consumers.taker import Taker
from umbel.consumers.webhook_log import WebhookLog
from umbel.jobs.backend import recording
from umbel.jobs.blobs import BlobStore
from umbel.jobs.callbacks import is_callback
from umbel.jobs.canvas import check_followups
from umbel.jobs.context import JobContext, current
from umbel.jobs.contracts import Event, Message, names_of
from umbel.jobs.handle import JobHandle, Receipt
from umbel.jobs.job import Job, declare
from umbel.jobs.keys import Key
from umbel.jobs.plan import Plan, planned
from umbel.jobs.records import Records
from umbel.jobs.retry import Retry
from umbel.jobs.saga import Saga
from umbel.jobs.saga_records import SagaRecords
from umbel.jobs.saga_steps import Step
from umbel.jobs.subscription import Subscription, consumed, patterns_of
from umbel.jobs.versions import checked_versions
from umbel.jobs.webhooks import WEBHOOK
from umbel.producers.express import Express
from umbel.producers.publisher import Publisher
from umbel.producers.sender import Sender
from umbel.routing.connections import Connection
from umbel.routing.queues import WorkQueue, namespace_of, queue_of_subscriber, webhook_queue
from umbel.routing.shards import ShardMaps
from umbel.routing.topics import topics

if TYPE_CHECKING:
    from umbel.producers.outbox import Outbox, OutboxDatabase
    from umbel.producers.outbox.fallback import OutboxFallback
    from umbel.producers.outbox.writing import Session

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
            …; the environment and files win), or of Celery's own.

    Nothing is read, started or connected before it is needed.
    """

    amqp_cls = "umbel.routing.celery:AMQP"

    def __init__(self, name: str, broker: str | None = None, **options: Any) -> None:
        self._given = {key: options.pop(key) for key in list(options) if key in _SETTINGS}
        self._given.setdefault("broker_url", broker)
        _refuse_unknown(options)
        self.jobs: dict[str, Job[Any, Any, Any]] = {}
        self.subscriptions: dict[str, Subscription] = {}
        self.sagas: dict[str, Saga[Any]] = {}
        self.contracts: dict[str, type[Message]] = {}
        self._declared_queues: dict[str, WorkQueue] = {}
        self._instance = uuid4().hex[:12]  # children that a pool forks share it
        super().__init__(name, **options)
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
                message; likewise the next two.
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

    def publish(self, event: Event) -> Receipt:
        """Tell all who have subscribed, or nobody if none has.

        Raises:
            ContractError: the event does not fit; nothing was sent.
            BrokerUnavailable: no answer within ``publish_timeout_s``.
        """
        return self.sender.publish(event)

    async def apublish(self, event: Event) -> Receipt:
        """`publish` without blocking the event loop."""
        return await asyncio.to_thread(self.publish, event)

    def outbox(self, session: Session) -> Outbox:
        """Messages in the session's transaction: sent by the relay if it is committed, else never.

        Args:
            session: SQLAlchemy's `Session` or `AsyncSession`.

        Raises:
            SettingsError: SQLAlchemy is not installed.
        """
        from umbel.producers.outbox import Outbox  # noqa: PLC0415  an extra

        return Outbox(self.sender, session, self.settings.outbox_table)

    @cached_property
    def outbox_database(self) -> OutboxDatabase:
        """The outbox that `outbox_url` names.

        Raises:
            SettingsError: it names none, or SQLAlchemy is not installed.
        """
        from umbel.producers.outbox import OutboxDatabase  # noqa: PLC0415  likewise

        settings = self.settings
        if settings.outbox_url is None:
            raise SettingsError(
                "which outbox? set UMBEL_OUTBOX_URL (or outbox_url=) to its database, "
                "postgresql+psycopg://host/name or sqlite:////path"
            )
        return OutboxDatabase(
            settings.outbox_url, settings.outbox_table, settings.publish_timeout_s
        )

    @cached_property
    def _fallback(self) -> OutboxFallback | None:
        if self.settings.on_unavailable == "raise":
            return None
        database = self.outbox_database
        from umbel.producers.outbox.fallback import OutboxFallback  # noqa: PLC0415  likewise

        return OutboxFallback(database)

    def pull(
        self,
        queue: WorkQueue | str,
        *,
        limit: int | None = None,
        timeout_s: float | None = None,
    ) -> Iterator[Pulled]:
        """The messages of a queue, one by one in the caller's own loop, without a worker.

            for delivery in app.pull("images", timeout_s=10):
                with delivery as message:
                    ...

        The block takes the place of the job's function, and what it comes to is settled as in a
        worker when it is left, see `Pulled`. A message is taken when the loop asks for it; however
        long a block takes, it is held. What is unreadable, expired or cancelled never gets here. A
        loop that is left gives back what it has not begun.

        Args:
            queue: a work queue of this app, or a subscriber, by its name.
            limit: most messages; None for any number.
            timeout_s: seconds without a message after which the loop ends; None for ever. With 0 it
                takes what is there (half a second is given for the server to say so).

        Raises:
            UnknownQueue: the app has no such queue.
            StoreRequired: there is no place for dead letters.
            SettingsError: the queue is there with other arguments.
            BrokerUnavailable: the time was over, and the broker was away. Until then, and without
                a `timeout_s` for ever, it is tried again.
        """
        return pull(self._taker(queue), limit, timeout_s)

    def apull(
        self,
        queue: WorkQueue | str,
        *,
        limit: int | None = None,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Pulled]:
        """`pull` without blocking the event loop: ``async for``, and ``async with delivery``."""
        return apull(self._taker(queue), limit, timeout_s)

    def _taker(self, queue: WorkQueue | str) -> Taker:
        names = {job.name: job.work_queue.name for job in self.subscriptions.values()}
        name = WorkQueue.named(queue).name
        found = self.work_queues.get(name) or self.work_queues.get(names.get(name, ""))
        if found is None:
            known = ", ".join(sorted(self.work_queues))
            raise UnknownQueue(f"no queue {name!r} of jobs in this app; there are: {known}")
        _ = self.dead_letters
        if found.shards:
            self.shard_maps.check(found)
        return Taker(self, found)

    def unsubscribe(self, subscriber: str, *, queue: str | None = None) -> int:
        """Remove a subscriber's queue from the broker. Returns how many events were dropped.

        Args:
            subscriber: its name; it need not be declared any more.
            queue: the name of its queue, if it is not declared any more and had a name of its own.
        """
        queue = queue or self.queue_of(subscriber)
        with self.connection_for_write() as connection:
            dropped: int = connection.default_channel.unsubscribe(queue, topics(self.prefix).name)
        return dropped

    def reshard(self, queue: str) -> int:
        """Make this program's number of shards the one in use. Returns how many messages waited.

        They are put into the shards that they belong to by now, each key's in their order. Nobody
        may send or consume meanwhile; producers and workers with the old number are told of the new
        one. What is delayed must have come back before.

        Args:
            queue: the name of a work queue with shards.
        """
        return reshard(self, self.work_queues[queue])

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

    def handle(self, job_id: str) -> JobHandle[Any]:
        """The handle of a tracked job, in any process of the app.

        Raises:
            UnknownJob: it was never tracked, or its record has expired.
        """
        job = self.jobs.get(self.records.read(job_id).name)
        return job.handle(job_id) if job else JobHandle(job_id, self.records, lambda data: data)

    @cached_property
    def settings(self) -> Settings:
        """From the environment, then from files, then from the arguments, then the defaults."""
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
    def once(self) -> Once:
        """What came of idempotency keys.

        Raises:
            StoreRequired: there is no state store.
        """
        store = required(self.store, "a concurrency_key or idempotency_key")
        settings = self.settings
        return Once(store.client, self.prefix, settings.lease_s, settings.idempotency_ttl_s)

    @cached_property
    def saga_records(self) -> SagaRecords:
        """What is known of sagas.

        Raises:
            StoreRequired: there is no state store.
        """
        store = required(self.store, "a saga")
        return SagaRecords(store, self.prefix, self.settings.result_ttl_s)

    @cached_property
    def dead_letters(self) -> DeadLetterOffice:
        """Dead letters and quarantine.

        Raises:
            StoreRequired: there is no state store.
        """
        store = required(self.store, "keeping dead letters")
        return DeadLetterOffice(store, self.prefix, self.settings, self)

    @cached_property
    def webhook_log(self) -> WebhookLog:
        """What was tried to deliver callbacks to URLs.

        Raises:
            StoreRequired: there is no state store.
        """
        return WebhookLog(required(self.store, "the log of callbacks to URLs"), self.prefix)

    @cached_property
    def blobs(self) -> BlobStore:
        """Files by reference."""
        return BlobStore.at(self.settings.blob_url, self.conf.broker_url)

    @cached_property
    def _express(self) -> Express:
        return Express(self, lambda: type(self).send_task is _SEND_TASK)

    def close(self) -> None:
        """Close this app's connections."""
        self._express.close()
        super().close()

    @cached_property
    def sender(self) -> Sender:
        """The producer side."""
        return Sender(
            express=self._express,
            publisher=Publisher(self),
            records=lambda: self.records,
            broker_name=lambda: maybe_sanitize_url(self.conf.broker_write_url),
            timeout_s=self.settings.publish_timeout_s,
            shard_maps=lambda: self.shard_maps,
            fallback=lambda: self._fallback,
        )

    @cached_property
    def shard_maps(self) -> ShardMaps:
        """How many shards each queue has.

        Raises:
            StoreRequired: there is no state store.
        """
        return ShardMaps(required(self.store, "a queue with shards"), self.prefix)

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
        if self.current_worker_task is None or current.get():  # not Celery, after a task
            check_followups(self.jobs, name, options)
        if job := self.jobs.get(name):
            routed = not options.get("queue") and self._is_routed(job)
            try:
                args, options = self.sender.outgoing(job, args, kwargs, options)
            except ContractError as error:
                if not followups.is_set_off(self):
                    raise
                return self.AsyncResult(followups.quarantine(self, job, args, options, error))
            if routed:
                del options["queue"]
            name, kwargs = job.name_for(options.get("headers") or {}), None
        return super().send_task(name, args, kwargs, **options)

    def _is_routed(self, job: Job[Any, Any, Any]) -> bool:
        """Whether Celery's `task_routes` say where a job goes; its shards they do not know."""
        if job.work_queue.shards or not self.conf.task_routes:
            return False
        return bool(self.amqp.router.lookup_route(job.name, (), {}, {}))

    def _connection(self, url: str, *args: Any, **options: Any) -> Connection:
        """Celery's one way to a connection, for reading and for writing.

        Who sets one transport option keeps the others of ours: without them a send may hang.
        """
        options["transport_options"] = {
            **self._defaults["broker_transport_options"],
            **self.conf.broker_transport_options,
            **(options.get("transport_options") or {}),
        }
        url, master = split_master(server_url(url))
        if master:
            options["transport_options"]["master_name"] = master
        connection: Connection = super()._connection(url, *args, **options)
        return connection

    def _get_backend(self) -> Any:
        backend_class, url = backends.by_url(
            self.backend_cls or self.conf.result_backend, self.loader
        )
        return recording(backend_class)(app=self, url=url)

    def _load_config(self) -> Any:
        """Ours just above Celery's own: `add_defaults` would put them above a `celeryconfig`."""
        conf = super()._load_config()
        defaults = self._defaults
        for layers in (conf.maps, conf.defaults):
            layers.insert(-1, defaults)
        return conf

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        # Where `celery -b` puts its URL.
        effective = os.environ.get("CELERY_BROKER_URL") or self.settings.broker_url
        store = store_url(self.settings, effective)
        return celery_defaults(self.settings, self.prefix, server_url(effective), store)


_SETTINGS = Settings.model_fields.keys() - {"queues", "jobs", "subscribers"}
"""Those that an app takes as arguments; the others are said where it declares them."""

_SEND_TASK = Umbel.send_task
"""Who overrides it, a test for instance, gets every message."""


def _refuse_unknown(options: dict[str, Any]) -> None:
    """Celery takes any name, so that a typing error would be a setting that nobody reads."""
    known = {*DEFAULTS, *inspect.signature(Celery.__init__).parameters}
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, [*_SETTINGS, *known], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingsError(f"{name}: there is no such setting, here or of Celery's{hint}")

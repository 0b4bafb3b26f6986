"""The `Umbel` app: a Celery app whose jobs have contracts."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery.app import backends
from celery.app.utils import Settings

from umbel.config.celery import celery_defaults
from umbel.config.errors import ContractError, UnknownQueue
from umbel.config.store import server_url, split_master, store_url
from umbel.consumers import followups
from umbel.consumers.delivery import deliver
from umbel.consumers.pull import Pulled, apull, pull
from umbel.consumers.resharding import reshard
from umbel.consumers.taker import Taker
from umbel.declarations import Declarations
from umbel.jobs.backend import recording
from umbel.jobs.canvas import check_followups
from umbel.jobs.context import current
from umbel.jobs.contracts import Event
from umbel.jobs.handle import JobHandle, Receipt
from umbel.jobs.job import Job
from umbel.routing.connections import Connection
from umbel.routing.queues import WorkQueue
from umbel.routing.topics import topics

if TYPE_CHECKING:
    from umbel.producers.outbox import Outbox
    from umbel.producers.outbox.writing import Session


class Umbel(Declarations):
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
    events_cls = "umbel.consumers.events:Events"
    _conf: Any

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

    def handle(self, job_id: str) -> JobHandle[Any]:
        """The handle of a tracked job, in any process of the app.

        Raises:
            UnknownJob: it was never tracked, or its record has expired.
        """
        job = self.jobs.get(self.records.read(job_id).name)
        return job.handle(job_id) if job else JobHandle(job_id, self.records, lambda data: data)

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
        """Ours just above Celery's own, in the moment in which any can be read.

        Later, another thread or `on_after_configure` would read the others without them, and
        `add_defaults` would put them above a `celeryconfig`.
        """
        shown = Settings({}) if self._conf is None else self._conf

        def swap_with(loaded: Any) -> None:
            loaded.defaults.insert(-1, self._defaults)
            Settings.swap_with(shown, loaded)

        shown.__dict__["swap_with"] = swap_with
        self._conf = shown
        return super()._load_config()

    @cached_property
    def _defaults(self) -> dict[str, Any]:
        # Where `celery -b` puts its URL.
        effective = os.environ.get("CELERY_BROKER_URL") or self.settings.broker_url
        store = store_url(self.settings, effective)
        return celery_defaults(self.settings, self.prefix, server_url(effective), store)

    def _is_open(self) -> bool:
        return type(self).send_task is _SEND_TASK


_SEND_TASK = Umbel.send_task
"""Who overrides it, a test for instance, gets every message."""

"""Celery's table of queues and its two ends, sending and consuming, for the queues of an app."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import cached_property
from typing import Any

from amqp.exceptions import PreconditionFailed
from celery.app import amqp
from kombu.connection import maybe_channel
from kombu.entity import Queue

from umbel.config.errors import SettingsError, UnknownQueue
from umbel.routing import connections
from umbel.routing.drawer import Drawer
from umbel.routing.queues import WorkQueue, declaration, not_kept, safety_net
from umbel.routing.rabbitmq import Delays, Runs, refusals_named, within
from umbel.routing.service import Service
from umbel.routing.times import seconds_until
from umbel.routing.topics import is_topics
from umbel.routing.valkey import leases

logger = logging.getLogger("umbel.delivery")


class Queues(amqp.Queues):
    """Celery's table of queues, which says what there is when a name is not in it.

    Attributes:
        check: called with the names of the queues that this worker will consume.
        families: the work queues, by their names.
    """

    check: Callable[[Iterable[str]], None] | None = None
    families: dict[str, WorkQueue]

    def _add(self, queue: Queue) -> Queue:
        self[queue.name] = queue  # without Celery's default exchange in place of the unnamed one
        return queue

    def select(self, include: Iterable[str] | str | None) -> None:
        """Consume from these only (``celery worker -Q``).

        Raises:
            UnknownQueue: with the names that there are.
            SettingsError: a job of theirs may run longer than the server lets it.
        """
        names = [include] if isinstance(include, str) else list(include or ())
        if unknown := [name for name in names if name not in self and name not in self.families]:
            raise UnknownQueue(
                f"no queue {', '.join(map(repr, unknown))} in this app; "
                f"there are: {', '.join(sorted({*self, *self.families}))}"
            )
        super().select(
            [
                part
                for name in names
                for part in (self.families[name].parts if name in self.families else (name,))
            ]
        )
        if self.check:
            self.check(self.consume_from)


class AMQP(amqp.AMQP):
    """Celery's sending side with the queues of the app's jobs."""

    app: Any

    queues_cls = Queues

    def Queues(self, queues: Any, *args: Any, **options: Any) -> Queues:  # noqa: N802  Celery's name
        """Called by Celery once, with the setting ``task_queues``."""
        app = self.app
        known = {queue.name: queue for queue in queues or ()}
        default = WorkQueue(app.conf.task_default_queue).configured(app.settings)
        families = {default.name: default} | app.work_queues
        for queue in families.values():
            for declared in self._declarations(queue):
                known.setdefault(declared.name, declared)
        table: Queues = super().Queues(list(known.values()), *args, **options)
        table.families = families
        if self.net:
            table.check = self._check
            logging.getLogger("celery.app.base").addFilter(_is_not_about_delays)
        return table

    def Connection(  # noqa: N802  likewise
        self, *args: Any, heartbeat: float | None = None, **options: Any
    ) -> connections.Connection:
        """A connection; a producer's has heartbeats too, or what is between would cut it off."""
        if heartbeat is None and self.net:
            heartbeat = self.app.conf.broker_heartbeat
        options["heartbeat"] = heartbeat
        return connections.Connection(*args, **options)

    def declared_late(self, queue: WorkQueue) -> None:
        """A job was declared after something was sent already."""
        if "queues" in self.__dict__:
            self.queues.families[queue.name] = queue
            for declared in self._declarations(queue):
                if declared.name not in self.queues:
                    self.queues.select_add(declared)

    def _declarations(self, queue: WorkQueue) -> list[Queue]:
        return [
            declaration(queue, part, namespace=self.app.prefix, net=self.net)
            for part in queue.parts
        ]

    def serve(self, channel: Any) -> None:
        """Let a channel know how to consume from the queues of this app."""
        channel.services = {
            part: Service(
                family=part if queue.shards else queue.name,
                prefetch=1 if queue.shards else queue.prefetch,
                in_order=bool(queue.shards),
            )
            for queue in self.queues.families.values()
            if queue.shards or queue.priorities or queue.prefetch
            for part in queue.parts
        }
        if self.net:
            channel.runs = self._runs

    def queue(self, name: str) -> Queue:
        """A queue by its name, of this app or of another one on this broker."""
        known: Queue | None = self.queues.get(name)
        return known or declaration(WorkQueue(name), namespace=self.app.prefix, net=self.net)

    @cached_property
    def net(self) -> Queue | None:
        """See `safety_net`; None where the broker is not RabbitMQ."""
        on_rabbitmq = self.app.conf.task_default_queue_type == "quorum"
        return safety_net(self.app.prefix) if on_rabbitmq else None

    @cached_property
    def _runs(self) -> Runs | None:
        store = self.app.store if self.net else None
        return Runs(store.client, self.app.prefix) if store else None

    def give_back(self) -> None:
        """The worker ends in good order: what it still holds goes back, uncounted."""
        leases.end()
        if self._runs:
            self._runs.end()

    def TaskConsumer(self, channel: Any, *args: Any, **options: Any) -> Any:  # noqa: N802  likewise
        """The worker's consumer.

        On RabbitMQ the net is spread first, and what is in it is told. A queue that is there with
        other arguments ends the worker: it would be refused again and again.
        """
        try:
            return self._consumer(channel, *args, **options)
        except PreconditionFailed as error:
            raise SystemExit(f"celery worker: {_other_arguments(error)}") from error

    def PullConsumer(self, channel: Any, queues: list[Queue], **options: Any) -> Any:  # noqa: N802
        """The consumer of a loop that pulls: one message at a time, of each queue on RabbitMQ.

        Raises:
            SettingsError: a queue is there with other arguments, or a job may run too long.
        """
        if self.net:
            self._refuse_long_jobs([queue.name for queue in queues])
        try:
            consumer = self._consumer(channel, queues, prefetch_count=1, **options)
        except PreconditionFailed as error:
            raise SettingsError(_other_arguments(error)) from error
        channel.most_ahead = 0  # on Valkey
        channel.services = {
            name: replace(service, prefetch=service.prefetch and 1)
            for name, service in channel.services.items()
        }
        return consumer

    def _consumer(self, channel: Any, *args: Any, **options: Any) -> Any:
        channel, net = maybe_channel(channel), self.net
        self.serve(channel)
        given_up = net.bind(channel).queue_declare().message_count if net else 0
        consumer = super().TaskConsumer(channel, *args, **options)
        if net and given_up:
            logger.warning(
                "RabbitMQ gave up %d messages: they are in queue %s",
                given_up,
                net.name,
                extra={"action": "given_up", "queue": net.name, "messages": given_up},
            )
        return consumer

    def _check(self, queues: Iterable[str]) -> None:
        self._refuse_long_jobs(queues)
        for queue in self.queues.families.values():
            said = not_kept(queue, self.net)
            if said and not {*queue.parts}.isdisjoint(queues):
                logger.warning("queue %s: %s", queue.name, said, extra={"action": "not_kept"})

    def _refuse_long_jobs(self, queues: Iterable[str]) -> None:
        """RabbitMQ takes back a message that runs too long, and it would run again and again."""
        limit_s = self.app.settings.consumer_timeout_s
        for job in self.app.jobs.values():
            consumed = not {*job.work_queue.parts}.isdisjoint(queues)
            if consumed and (job.timeout_s or 0) >= limit_s:
                raise SettingsError(
                    f"job {job.name!r} has timeout_s={job.timeout_s:g}, and RabbitMQ takes back "
                    f"what is not acknowledged within its consumer_timeout, {limit_s:g} s as far "
                    "as is known here: raise consumer_timeout in rabbitmq.conf (milliseconds), "
                    "and say so by UMBEL_CONSUMER_TIMEOUT_S (or consumer_timeout_s=) in seconds"
                )

    def _create_task_sender(self) -> Callable[..., Any]:
        """Called by Celery once: the function through which every task message goes out."""
        send = _to_somebody(super()._create_task_sender())
        send = self._in_time(send) if self.net else send

        def send_or_keep(producer: Any, name: str, message: Any, **options: Any) -> Any:
            if isinstance(producer, Drawer):
                return producer.keep(name, message, options)
            return send(producer, name, message, **options)

        return send_or_keep

    def _in_time(self, send: Callable[..., Any]) -> Callable[..., Any]:
        """The same on RabbitMQ: not longer than it may take, and delays wait on the server."""
        timeout_s = self.app.settings.publish_timeout_s
        delays = Delays(self.app.prefix)

        def send_in_time(
            producer: Any, name: str, message: Any, *, expiration: Any = None, **options: Any
        ) -> Any:
            # Without the expiry that Celery puts on the message: the server would drop it where
            # nobody sees it. The worker does, by a header, and keeps the record.
            del expiration
            queue, seconds = options.get("queue"), seconds_until(message.headers.get("eta"))
            if isinstance(queue, Queue) and seconds >= 1:
                options |= delays.way(queue, seconds) | {"queue": None}
            with within(timeout_s), refusals_named():
                return send(producer, name, message, **options)

        return send_in_time


def _other_arguments(error: PreconditionFailed) -> str:
    advice = "delete it once it is empty, or take another name"
    return f"{error}. Its arguments cannot be changed: {advice}"


def _to_somebody(send: Callable[..., Any]) -> Callable[..., Any]:
    """Only an event may find nobody: whatever else no queue takes is refused, and said so."""

    def send_to_somebody(
        producer: Any, name: str, message: Any, *, exchange: Any = None, **options: Any
    ) -> Any:
        to = getattr(exchange, "name", exchange) or ""
        if options.get("mandatory") is None:
            options["mandatory"] = not is_topics(to)
        return send(producer, name, message, exchange=exchange, **options)

    return send_to_somebody


def _is_not_about_delays(record: logging.LogRecord) -> bool:
    """Celery warns of delays through direct exchanges: it does not know of ours."""
    return "native delayed delivery" not in str(record.msg)

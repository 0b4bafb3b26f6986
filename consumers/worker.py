"""The worker's consumer: whatever arrives, the worker goes on and nothing vanishes."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from celery import signals
from celery.app.task import Task
from celery.apps import worker as celery_worker
from celery.concurrency import prefork as celery_prefork
from celery.worker import consumer, state

from umbel.config.errors import SettingsError, ShardsChanged, StoreRequired, UnknownQueue
from umbel.consumers.arrival import Arrivals
from umbel.consumers.drain import Drain
from umbel.consumers.prefork import TaskPool
from umbel.consumers.request import Held
from umbel.consumers.webhooks import refuse_without_libraries
from umbel.jobs.plan import strangers
from umbel.jobs.webhooks import WEBHOOK
from umbel.routing import json
from umbel.routing.queues import webhook_queue

logger = logging.getLogger("umbel.worker")

EVENTS_EVERY_S = 0.1
"""Longest time for which an event for Flower waits for others."""

RECONNECT = {"interval_start": 0.1, "interval_step": 0.3, "interval_max": 1.0}
"""Seconds between looks for a broker that is away; Celery's grow to half a minute."""

TICK_S = 1.0
"""How often a supervisor is told that the worker lives."""

Handler = Callable[[Any], Any]


class Consumer(consumer.Consumer):
    """Celery's consumer, which looks at a message before Celery trips over it."""

    class Blueprint(consumer.Consumer.Blueprint):
        """Celery's, without the 28 queues for delays that it would declare on RabbitMQ.

        They hold what comes through topic exchanges, and ours hang on the default exchange.
        """

        default_steps: ClassVar = [
            step for step in consumer.Consumer.Blueprint.default_steps if "delayed" not in step
        ]

    pool: Any
    _events_due = False

    def call_soon_ack(self, p: Any, *args: Any, **options: Any) -> Any:
        """At once where that is safe in threads: on our transports it is."""
        if self.connection and getattr(self.connection.transport, "acks_at_once", False):
            return p(*args, **options)
        return super().call_soon_ack(p, *args, **options)

    def on_ready(self) -> None:
        """Begin anew: what others have by now ends here, if it is only now that this is known."""
        for request in tuple(state.requests.values()):
            if isinstance(request, Held):
                request.lose(self.pool)
        super().on_ready()

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Jobs go on while their messages are held, and are ended when they are not."""
        for request in tuple(state.requests.values()):
            if isinstance(request, Held):
                request.lose(self.pool)
                request.keep()
        super().on_connection_error_after_connected(exc)

    def on_close(self) -> None:
        """What the pool has it runs; Celery's would forget about it."""
        self._flush_events()
        pool, self.pool = self.pool, None
        try:
            super().on_close()
        finally:
            self.pool = pool

    def register_with_event_loop(self, hub: Any) -> None:
        """Once the connection is there."""
        super().register_with_event_loop(hub)
        hub.call_repeatedly(TICK_S, self.tick)
        if self.app.amqp.net and self.pool.uses_semaphore:  # jobs run in other processes
            self.task_consumer.channel.read_ahead(hub)

    def ensure_connected(self, conn: Any) -> Any:
        """Waiting for the broker is life too: the jobs go on."""
        connect = conn.ensure_connection

        def ensure_connection(*args: Any, callback: Callable[[], Any], **options: Any) -> Any:
            def waiting() -> None:
                self.tick()
                callback()

            return connect(*args, callback=waiting, **RECONNECT, **options)

        conn.ensure_connection = ensure_connection
        return super().ensure_connected(conn)

    def tick(self) -> None:
        """Tell a supervisor that the event loop turns."""
        if path := self.app.settings.liveness_file:
            path.touch()

    def on_send_event_buffered(self) -> None:
        """Events go out together some times a second: one by one they cost more than small jobs."""
        if self.hub and not self._events_due:
            self._events_due = True
            self.hub.call_soon(self.hub.call_later, EVENTS_EVERY_S, self._flush_events)

    def _flush_events(self) -> None:
        self._events_due = False
        super()._flush_events()

    def update_strategies(self) -> None:
        """Celery's own tasks are held like jobs."""
        for task in self.app.tasks.values():
            if task.Request == Task.Request:
                task.Request = "umbel.consumers.request:Held"
        super().update_strategies()

    def create_task_handler(self, *args: Any, **options: Any) -> Handler:
        """The function that is called with each message."""
        run: Handler = super().create_task_handler(*args, **options)
        return partial(self._arrivals.take, run=run)

    @property
    def _arrivals(self) -> Arrivals:
        return Arrivals(
            self.app,
            known=self.strategies,
            connection_errors=self.connection_errors,
            events=self.event_dispatcher,
        )

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Celery's would acknowledge, and the message would be gone."""
        self._arrivals.refuse(message, exc)

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Likewise."""
        self._arrivals.refuse(message, exc)


class Worker(celery_worker.Worker):
    """Celery's worker program."""

    pool_cls: Any

    def on_init_blueprint(self) -> None:
        """Called before the worker's parts are made."""
        super().on_init_blueprint()
        json.register()
        if self.pool_cls is celery_prefork.TaskPool:
            self.pool_cls = TaskPool

    def setup_queues(self, include: Any, exclude: Any = None) -> None:
        """What is missing ends the program here, with what to do and not with a traceback.

        A queue that this app does not have, or a place for the dead letters.
        """
        try:
            _ = self.app.dead_letters
            super().setup_queues(include, exclude)
            self._name_strangers()
            for queue in self.app.work_queues.values():
                if queue.shards and queue.parts[0] in self.app.amqp.queues.consume_from:
                    self.app.shard_maps.check(queue)
            if webhook_queue(self.app.prefix) in self.app.amqp.queues.consume_from:
                refuse_without_libraries()
        except (UnknownQueue, StoreRequired, SettingsError, ShardsChanged) as error:
            raise SystemExit(f"celery worker: {error}") from error
        self._warn_of_subscribers()

    def _warn_of_subscribers(self) -> None:
        """Their queues fill, whether anybody consumes them or not; ``-Q`` may have missed one."""
        consumed = self.app.amqp.queues.consume_from
        others = [
            job.work_queue.name
            for part, job in self.app.subscriptions.items()
            if part not in consumed and not job.work_queue.instance
        ]
        if others:
            logger.warning(
                "events wait for another worker, this one does not consume: %s",
                ", ".join(sorted(others)),
                extra={"action": "not_consumed", "queues": others},
            )

    def _name_strangers(self) -> None:
        app = self.app
        for stranger in strangers(app.settings, app.jobs, app.amqp.queues.families):
            logger.warning(stranger, extra={"action": "unknown_in_settings"})

    def _process_task(self, req: Any) -> None:
        """Called with each message; where a pool is asked only for a free process, it begins now:
        its child may take this process along before anybody hears of it."""
        if isinstance(req, Held):
            if self.pool.uses_semaphore:
                req.begin()
            else:
                req.read_here()
        super()._process_task(req)

    def start(self) -> None:
        """Run until a signal says to finish what runs and to give back what is not done in time."""
        self._drain = Drain(lambda: self.pool, self.app.amqp.give_back, self.app.settings.grace_s)
        signals.worker_shutting_down.connect(self._drain.begin)
        # What is there by now stays: the collector need not look at it again and again, and
        # children share its pages for longer.
        gc.collect()
        gc.freeze()
        super().start()

    def on_stopped(self) -> None:
        """Whatever is still held goes back at once."""
        super().on_stopped()
        self.app.amqp.give_back()

    def on_consumer_ready(self, consumer: Any) -> None:
        """Say what this pool cannot keep."""
        super().on_consumer_ready(consumer)
        if "prefork" in self.pool_cls.__module__:
            return
        limited = {job.name for job in self.app.jobs.values() if job.timeout_s and not job.is_async}
        limited.discard(WEBHOOK)  # looks at the clock itself
        if limited:
            logger.warning(
                "this pool cannot stop a job that runs too long: timeout_s of %s holds only where "
                "the job looks at context.cancelled; the prefork pool enforces it",
                ", ".join(sorted(limited)),
                extra={"action": "cooperative_timeouts"},
            )

"""The thread behind a loop that pulls: a worker of one place, whose jobs the loop does.

It takes a message when the loop asks for one, and goes the way of a worker with it (`arrival`,
`delivery`, `request`) until the job is to be run: there it hands it to the loop, and waits for what
comes of it.
"""

from __future__ import annotations

import logging
import os
import threading
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from time import monotonic
from typing import Any

from celery.concurrency.base import BasePool, apply_target
from celery.exceptions import TaskRevokedError
from celery.utils.nodenames import gethostname, nodename

from umbel.config.errors import BrokerUnavailable
from umbel.consumers.arrival import Arrivals
from umbel.consumers.delivery import Delivery, again, call, runner
from umbel.consumers.pull import Pulled, back
from umbel.consumers.request import Held, Request
from umbel.jobs.context import JobContext
from umbel.jobs.contracts import Message
from umbel.jobs.job import Job
from umbel.jobs.outages import AWAY
from umbel.jobs.wire import Sealed
from umbel.routing.queues import WorkQueue
from umbel.routing.times import seconds_until

logger = logging.getLogger("umbel.pull")

LOOK_S = 0.5
"""Shortest look for messages: a server needs a moment to say what it has."""
POLL_S = 0.5
"""How often a wait looks whether it is over."""
MOMENT_S = 0.01
"""Time in which RabbitMQ sends the next message of a priority, before one of a lower is taken."""
RECONNECT_S = 0.5
STOP_S = 5.0
"""Longest wait for a connection to be closed."""
_OURS = "umbel."
"""How the names of a framework's own jobs begin: a saga's, which no loop can do."""


class Taker(threading.Thread):
    """Takes the messages of one work queue for one loop.

    Args:
        app: an `umbel.Umbel`.
        queue: of that app.
    """

    def __init__(self, app: Any, queue: WorkQueue) -> None:
        super().__init__(name="umbel-pull", daemon=True)
        self._app = app
        self._queue = queue
        self._mixed = bool(queue.priorities and app.amqp.net)
        self._node = nodename(f"pull{os.getpid()}", gethostname())
        self._pool = BasePool()
        self._pool.on_apply = apply_target
        self._asked: SimpleQueue[float | None] = SimpleQueue()
        self._answers: SimpleQueue[Pulled | BaseException | None] = SimpleQueue()
        self._until: float | None = None  # when the question that is open ends
        self._arrived: list[Any] = []
        self._current: Pulled | None = None
        self._stopped = threading.Event()

    # The loop's side.

    def ask(self, timeout_s: float | None) -> Pulled | None:
        """The next message, or None if there was none for so long.

        Raises:
            BrokerUnavailable: the broker was away at the end of that time.
        """
        if not self.ident:
            self.start()
        self._asked.put(float("inf") if timeout_s is None else monotonic() + timeout_s)
        answer = self._answers.get()
        if isinstance(answer, BaseException):
            raise answer
        return answer

    def stop(self) -> None:
        """Close the connection; what is held and not begun goes back."""
        self._stopped.set()
        self._asked.put(None)
        if pulled := self._current:
            pulled.drop()
        if self.ident:
            self.join(STOP_S)

    # This thread's.

    def run(self) -> None:
        """Until it is stopped."""
        self._app.set_current()
        runner.set(self._hand_over)
        try:
            while self._is_asked():
                self._connect()
        except BaseException as error:
            self._answers.put(error)
        finally:
            self._let_go()
            self._answers.put(None)

    def _is_asked(self) -> bool:
        """Wait for a question, unless one is open; False once there will be none."""
        if self._until is None and not self._stopped.is_set():
            self._until = self._asked.get()
        return self._until is not None and not self._stopped.is_set()

    def _answer(self, answer: Pulled | BaseException | None) -> None:
        self._until = None
        self._answers.put(answer)

    def _connect(self) -> None:
        """Serve the loop over one connection, for as long as it holds."""
        connection = self._app.connection_for_read()
        lost = (*connection.connection_errors, *connection.channel_errors, *AWAY)
        try:
            with connection:
                connection.connect()
                self._serve(connection)
        except lost as error:
            if isinstance(error, KeyError):
                raise  # Kombu counts them, and it is a fault in here
            logger.warning("no connection to the broker, trying again: %r", error)
            if self._until is not None and monotonic() >= self._until:
                raise BrokerUnavailable(f"nothing could be pulled: {error!r}") from error
            self._stopped.wait(RECONNECT_S)

    def _serve(self, connection: Any) -> None:
        channel, app = connection.channel(), self._app
        enabled = app.conf.worker_send_task_events
        events = app.events.Dispatcher(connection, hostname=self._node, enabled=enabled)
        arrivals = Arrivals(app, app.tasks, connection.connection_errors, events)
        self._arrived.clear()
        consumer = app.amqp.PullConsumer(
            channel,
            [app.amqp.queues[part] for part in self._queue.parts],
            on_message=self._arrived.append,
            on_decode_error=arrivals.refuse,
        )
        with consumer:
            look_until = monotonic() + LOOK_S
            while self._is_asked():
                if message := self._next(connection, look_until):
                    self._take(message, arrivals, channel)
                else:
                    self._answer(None)

    def _next(self, connection: Any, look_until: float) -> Any:
        """The next message; None if it did not come in time."""
        while not self._stopped.is_set():
            if self._arrived:
                return self._first(connection)
            left_s = max(self._until or 0, look_until) - monotonic()
            if left_s <= 0:
                return None
            _drain(connection, min(left_s, POLL_S))
        return None

    def _first(self, connection: Any) -> Any:
        """Of those that have come, the one that is to be served first."""
        turn = {part: place for place, part in enumerate(self._queue.parts)}

        def place(message: Any) -> int:
            return turn.get(message.delivery_info.get("routing_key"), 0)

        if self._mixed and min(map(place, self._arrived)) > 0:
            _drain(connection, MOMENT_S)
        first = min(self._arrived, key=place) if self._mixed else self._arrived[0]
        self._arrived.remove(first)
        return first

    def _take(self, message: Any, arrivals: Arrivals, channel: Any) -> None:
        """One message, from its arrival to its settlement."""
        try:
            arrivals.take(message, partial(self._run_job, arrivals))
            channel.flush()
        finally:
            self._let_go()

    def _run_job(self, arrivals: Arrivals, message: Any) -> None:
        task = self._app.tasks[message.headers["task"]]
        request = (Request if isinstance(task, Job) else Held)(
            message,
            on_ack=message.ack_log_error,
            on_reject=message.reject_log_error,
            hostname=self._node,
            eventer=arrivals.events,
            app=self._app,
            connection_errors=arrivals.connection_errors,
            task=task,
        )
        wait_s = seconds_until(message.headers.get("eta"))
        if wait_s > 0 and isinstance(task, Job):  # a plain producer's; ours wait on the server
            delivery = Delivery.of(task, request._context)
            again(delivery, delivery.envelope, wait_s, delivery.attempt)
            request.acknowledge()
            return
        _tell_received(request)
        with suppress(TaskRevokedError):
            request.execute_using_pool(self._pool)

    def _hand_over(self, delivery: Delivery, message: Message, context: JobContext) -> Sealed:
        """What a worker's process does: here the loop does it."""
        if delivery.job.name.startswith(_OURS):
            return call(delivery, message, context)
        self._let_go()  # a run before this one, in the same place of its shard
        if not self._is_asked():
            raise back("it has ended")
        self._current = pulled = Pulled(delivery, message, context)
        if self._stopped.is_set():
            raise back("it has ended")
        self._answer(pulled)
        return pulled.outcome()

    def _let_go(self) -> None:
        """The block that was waiting for its settlement may go on."""
        if self._current:
            self._current.settled()
        self._current = None


def _drain(connection: Any, timeout_s: float) -> None:
    """Let come what comes in that time, one message at most."""
    try:
        connection.drain_events(timeout=timeout_s)
    except TimeoutError:
        connection.heartbeat_check()


def _tell_received(request: Any) -> None:
    """Flower learns from this what a job is."""
    request.send_event(
        "task-received",
        name=request.name,
        args=request.argsrepr,
        kwargs=request.kwargsrepr,
        root_id=request.root_id,
        parent_id=request.parent_id,
        retries=request.request_dict.get("retries", 0),
        eta=None,
        expires=request.expires and request.expires.isoformat(),
    )

"""Events on their way out, through Celery: its signals and serializers hold for them too."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from celery.utils.nodenames import anon_nodename
from kombu.entity import Exchange

from umbel.jobs.wire import Checked
from umbel.routing.drawer import Drawer, Letter
from umbel.routing.topics import topics


class Publisher:
    """The way out for one app's events.

    Args:
        app: a Celery app.
    """

    def __init__(self, app: Any) -> None:
        self._app = app

    @cached_property
    def _exchange(self) -> Exchange:
        return topics(self._app.prefix)

    @property
    def source(self) -> str:
        """Where the app's events come from."""
        prefix: str = self._app.prefix
        return prefix

    def forward(self, letter: Letter) -> None:
        """One that was put into a drawer: an event, or a job's message."""
        amqp = self._app.amqp
        to = {"exchange": self._exchange, "routing_key": letter.name, "declare": [self._exchange]}
        if letter.queue is not None:
            to = {"queue": amqp.queue(letter.queue)}
        message = letter.message(
            tell=self._app.conf.task_send_sent_event and letter.queue is not None
        )
        with (
            self._app.producer_or_acquire() as producer,
            producer.connection._reraise_as_library_errors(),
        ):
            amqp.send_task_message(producer, letter.name, message, **to)

    def emit(
        self,
        name: str,
        event_id: str,
        payload: dict[str, Any],
        shown: str,
        headers: Mapping[str, Any],
        *,
        drawer: Drawer | None = None,
    ) -> None:
        """A copy to each subscriber's queue.

        Args:
            name: of the event.
            event_id: its id.
            payload: checked.
            shown: for people.
            headers: beside Celery's.
            drawer: where it is put instead.
        """
        amqp, parent = self._app.amqp, self._app.current_worker_task
        request = parent._get_request() if parent else None
        message = amqp.as_task_v2(
            event_id,
            name,
            (Checked(payload),),
            ignore_result=True,
            argsrepr=shown,
            kwargsrepr="",
            root_id=request and (request.root_id or request.id),
            parent_id=request and request.id,
            origin=anon_nodename(),
        )
        with self._app.producer_or_acquire(drawer) as producer:
            amqp.send_task_message(
                producer,
                name,
                message,
                exchange=self._exchange,
                routing_key=name,
                declare=[self._exchange],
                headers=dict(headers),
            )

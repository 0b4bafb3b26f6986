"""Events on their way out, through Celery: its signals and serializers hold for them too."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from celery.utils.nodenames import anon_nodename
from kombu.entity import Exchange

from umbel.jobs.wire import Checked
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

    def emit(
        self,
        name: str,
        event_id: str,
        payload: dict[str, Any],
        shown: str,
        headers: Mapping[str, Any],
    ) -> None:
        """A copy to each subscriber's queue.

        Args:
            name: of the event.
            event_id: its id.
            payload: checked.
            shown: for people.
            headers: beside Celery's.
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
        with self._app.producer_or_acquire() as producer:
            amqp.send_task_message(
                producer,
                name,
                message,
                exchange=self._exchange,
                routing_key=name,
                declare=[self._exchange],
                headers=dict(headers),
            )

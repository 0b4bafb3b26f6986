"""What a worker tells Flower: Celery's events, many in one message."""

from __future__ import annotations

from time import time
from typing import Any

from celery.app import events
from celery.events import dispatcher
from celery.utils.time import utcoffset

from umbel.routing import json

MOST_EVENTS = 1000
"""Most events of one message."""

_HOW = {"blind", "utcoffset", "retry", "retry_policy", "Event"}
"""What may be said to Celery's `send` beside an event's fields."""

_Celerys: Any = dispatcher.EventDispatcher


class Events(events.Events):
    """Where an app finds it."""

    dispatcher_cls = "umbel.consumers.events:Dispatcher"


class Dispatcher(_Celerys):
    """Celery's, with less work for each event that waits for others: small jobs have three."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if self.buffer_group:  # a worker's
            self.buffer_limit = MOST_EVENTS
            self.serializer = json.EVENTS

    def send(self, type: str, *how: Any, **fields: Any) -> None:
        """Send an event, as Celery's does."""
        group = type.partition("-")[0]
        wanted = self.enabled and (not self.groups or group in self.groups)
        waits = wanted and group in self.buffer_group
        if not waits or how or not _HOW.isdisjoint(fields):
            super().send(type, *how, **fields)
            return
        event = {"type": type, "timestamp": time(), "clock": self.clock.forward(), **fields}
        waiting = self._group_buffer[group]
        waiting.append(event)
        if len(waiting) >= self.buffer_limit:
            self.flush()
        elif self.on_send_buffered:
            self.on_send_buffered()

    def _publish(self, event: Any, *args: Any, **options: Any) -> None:
        """One event, or a list of those that waited: what all have in common is added here."""
        if isinstance(event, list):
            common = {"hostname": self.hostname, "utcoffset": utcoffset(), "pid": self.pid}
            event = [common | one for one in event]
        super()._publish(event, *args, **options)

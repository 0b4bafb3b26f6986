"""The short way to Valkey: a message's JSON made in one go, and sent in one round trip.

Celery builds, routes and encodes every message anew, though all messages of a job differ in a few
fields only. Here the rest is made once for each job. The message is the same; whatever is unusual
(a delay, a signal's receiver, routes, another broker) takes Celery's way.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any
from uuid import uuid4

import redis
from celery import signals
from celery.utils.nodenames import anon_nodename
from kombu.exceptions import OperationalError
from pydantic_core import to_json

from umbel.jobs.job import Job
from umbel.routing.drawer import Letter
from umbel.routing.valkey import Leased, Outlet

_BODY_END = b'],{},{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]'
_origin = cache(anon_nodename)
os.register_at_fork(after_in_child=_origin.cache_clear)  # the process is a part of it

_SIGNALS = (signals.before_task_publish, signals.after_task_publish, signals.task_sent)


@dataclass(slots=True)
class Parcel:
    """One message, checked.

    Attributes:
        job_id: its job's id.
        queue: where it goes.
        payload: as JSON.
        shown: for people.
        headers: ours.
        ignore_result: whether Celery keeps no result.
    """

    job_id: str
    queue: str
    payload: bytes
    shown: str
    headers: dict[str, Any]
    ignore_result: bool


class Express:
    """The short way out of one app.

    Args:
        app: a Celery app.
        open: whether nobody wants to see every message on Celery's way.
    """

    def __init__(self, app: Any, open: Callable[[], bool]) -> None:
        self._app = app
        self._open = open
        self._templates: dict[str, bytes] = {}
        self._idle: deque[Outlet] = deque()
        os.register_at_fork(after_in_child=self._idle.clear)

    def takes(self, job: Job[Any, Any, Any]) -> bool:
        """Whether messages of this job may go this way now."""
        if not self.is_open:
            return False
        parent = self._app.current_worker_task
        if parent is not None and parent._get_request().stamped_headers:
            return False
        return bool(self._template(job))

    @property
    def is_open(self) -> bool:
        """Whether anything may go this way now."""
        heard = any(signal.receivers for signal in _SIGNALS)
        return not heard and self._open() and self._suits

    @cached_property
    def _suits(self) -> bool:
        """Whether the broker and the app's settings allow it."""
        conf = self._app.conf
        usual = not (conf.task_always_eager or conf.task_routes or conf.task_compression)
        return (
            usual
            and not conf.task_inherit_parent_priority
            and conf.task_serializer == "json"
            and conf.task_protocol == 2
            and self._is_leased
        )

    @property
    def _is_leased(self) -> bool:
        """Not where Kombu changes to another server by itself (URLs joined by ``;``)."""
        connection = self._app.connection_for_write()
        alone = len(connection.alt) <= 1 or connection.transport_cls == "sentinel"
        return alone and isinstance(connection.transport, Leased)

    def _template(self, job: Job[Any, Any, Any]) -> bytes:
        """The headers that all messages of a job have, as JSON; empty if its options say more."""
        if job.name not in self._templates:
            options = {k: v for k, v in job._get_exec_options().items() if v is not None}
            limits = [options.pop("time_limit", None), options.pop("soft_time_limit", None)]
            unusual = options.keys() - {"ignore_result", "serializer"}
            if options.get("serializer", "json") != "json":
                unusual.add("serializer")
            self._templates[job.name] = b"" if unusual else to_json(_headers(job, limits))
        return self._templates[job.name]

    @cached_property
    def _tries(self) -> int:
        """Once more, at once: an idle connection may have been closed."""
        return 2 if self._app.conf.task_publish_retry else 1

    @cached_property
    def _events(self) -> Any:
        """Celery's dispatcher, if Flower is to learn of sending."""
        return self._app.amqp._event_dispatcher if self._app.conf.task_send_sent_event else None

    def send(self, job: Job[Any, Any, Any], parcels: Sequence[Parcel]) -> None:
        """Send them, to each queue in their order.

        Raises:
            kombu.exceptions.OperationalError: they may or may not be in their queues.
        """
        for queue in dict.fromkeys(parcel.queue for parcel in parcels):
            self._send(job, queue, [parcel for parcel in parcels if parcel.queue == queue])

    def _send(self, job: Job[Any, Any, Any], queue: str, parcels: Sequence[Parcel]) -> None:
        causes = self._causes()
        elements = [self._element(job, queue, parcel, *causes) for parcel in parcels]
        told = [self._told(job, parcel, *causes) for parcel in parcels] if self._events else []
        self._push(queue, elements, told)

    def forward(self, queue: str, letters: Sequence[Letter]) -> None:
        """Send what was put into a drawer, in its order.

        Raises:
            kombu.exceptions.OperationalError: they may or may not be in their queue.
        """
        elements = [
            _message(
                letter.body, to_json(letter.headers), to_json({**letter.properties, **_way(queue)})
            )
            for letter in letters
        ]
        self._push(queue, elements, [letter.sent for letter in letters] if self._events else [])

    def _push(self, queue: str, elements: Sequence[bytes], told: Sequence[dict[str, Any]]) -> None:
        events = [self._sent_event(queue, told)] if told else []
        try:
            outlet = self._idle.pop()  # one that no other thread has now
        except IndexError:
            outlet = Outlet(self._app.connection_for_write())
        try:
            for left in reversed(range(self._tries)):
                try:
                    outlet.push(queue, elements, *events)
                    return
                except (redis.RedisError, OSError) as error:
                    if not left:
                        raise OperationalError(str(error)) from error
        finally:
            self._idle.append(outlet)

    def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop().close()

    def _causes(self) -> tuple[str | None, str | None]:
        """Celery's ids of the first task and of the one that sends."""
        parent = self._app.current_worker_task
        if parent is None:
            return None, None
        request = parent._get_request()
        return request.root_id or request.id, request.id

    def _element(
        self,
        job: Job[Any, Any, Any],
        queue: str,
        parcel: Parcel,
        root_id: str | None,
        parent_id: str | None,
    ) -> bytes:
        own = {
            "id": parcel.job_id,
            "root_id": root_id or parcel.job_id,
            "parent_id": parent_id,
            "argsrepr": parcel.shown,
            "origin": _origin(),
            "ignore_result": parcel.ignore_result,
            **parcel.headers,
        }
        properties = {"correlation_id": parcel.job_id, "reply_to": self._app.thread_oid}
        return _message(
            b"[[" + parcel.payload + _BODY_END,
            _extended(self._template(job), own),
            to_json({**properties, **_way(queue)}),
        )

    @staticmethod
    def _told(
        job: Job[Any, Any, Any], parcel: Parcel, root_id: str | None, parent_id: str | None
    ) -> dict[str, Any]:
        """What Flower learns of one sending."""
        return {
            "uuid": parcel.job_id,
            "root_id": root_id or parcel.job_id,
            "parent_id": parent_id,
            "name": job.name,
            "args": parcel.shown,
            "kwargs": "",
            "retries": 0,
            "eta": None,
            "expires": None,
        }

    def _sent_event(self, queue: str, told: Sequence[dict[str, Any]]) -> tuple[str, str, bytes]:
        """The same of all: exchange, routing key, message."""
        way = {"queue": queue, "exchange": "", "routing_key": queue}
        events = [self._events._prepare_event("task-sent", {**one, **way}) for one in told]
        exchange = self._events.exchange.name
        one = len(events) == 1
        routing_key = "task.sent" if one else "task.multi"
        message = _message(
            to_json(events[0] if one else events),
            to_json(self._events.headers),
            to_json(_properties(1, exchange, routing_key, told[0]["uuid"])),
        )
        return exchange, routing_key, message


def _headers(job: Job[Any, Any, Any], limits: list[float | None]) -> dict[str, Any]:
    """Celery's protocol 2, as `celery.app.amqp.AMQP.as_task_v2` fills it."""
    return {
        "lang": "py",
        "task": job.name,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": limits,
        "kwargsrepr": "",
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }


def _way(queue: str) -> dict[str, Any]:
    """The properties that say where to."""
    return _properties(2, "", queue, str(uuid4()))


def _properties(mode: int, exchange: str, routing_key: str, tag: str) -> dict[str, Any]:
    return {
        "delivery_mode": mode,
        "delivery_info": {"exchange": exchange, "routing_key": routing_key},
        "delivery_tag": tag,
        "priority": 0,
        "body_encoding": "base64",
    }


def _message(body: bytes, headers: bytes, properties: bytes) -> bytes:
    """Kombu's envelope, as its virtual transports write it."""
    return (
        b'{"body":"%b","content-encoding":"utf-8","content-type":"application/json",'
        b'"headers":%b,"properties":%b}' % (b64encode(body), headers, properties)
    )


def _extended(template: bytes, own: dict[str, Any]) -> bytes:
    """A JSON object with more in it."""
    return template[:-1] + b"," + to_json(own)[1:]

"""The short way to Valkey: a message's JSON made in one go, and sent in one round trip.

Celery builds, routes and encodes every message anew, though all messages of a job differ in a few
fields only. Here the rest is made once for each job, as a stencil: JSON with ``%b`` where a value
is still to come. The message is the same; whatever is unusual (a delay, a signal's receiver,
routes, another broker) takes Celery's way.
"""

from __future__ import annotations

import os
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from time import time
from typing import Any, NamedTuple

import redis
from celery import signals
from celery.utils.nodenames import anon_nodename
from celery.utils.time import utcoffset
from kombu.exceptions import OperationalError
from pydantic_core import to_json

from umbel.jobs.job import Job
from umbel.jobs.wire import PRODUCED_AT, first_headers, new_id
from umbel.routing.drawer import Letter, told
from umbel.routing.valkey import Leased, Outlet

_BODY_END = b'],{},{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]'

_MOMENT = ("utcoffset", "clock", "timestamp")
"""The fields of an event that say when it was."""

_LATER: Any = "\0"


def _stencil(whole: dict[str, Any]) -> bytes:
    """As JSON, with ``%b`` for each value that is `_LATER`."""
    return to_json(whole).replace(b"%", b"%%").replace(to_json(_LATER), b"%b")


@dataclass(slots=True)
class Parcel:
    """One message, checked.

    Attributes:
        job_id: its job's id.
        queue: where it goes.
        payload: as JSON.
        shown: for people.
        correlation_id: joins all that one request set off.
        causation_id: the id of the job that sends.
        produced_at: when, UTC, ISO 8601.
        tracked: whether the store has a record of it.
        more: headers beside those.
        ignore_result: whether Celery keeps no result.
    """

    job_id: str
    queue: str
    payload: bytes
    shown: str
    correlation_id: str
    causation_id: str | None
    produced_at: str
    tracked: bool
    more: dict[str, Any]
    ignore_result: bool


class Lineage(NamedTuple):
    """Celery's ids of the first task and of the one that sends, as JSON."""

    root: bytes
    parent: bytes


_NOBODY = Lineage(b"", b"null")


class _Form(NamedTuple):
    """The stencils of a job's messages to one queue; `Express._filled` knows their gaps.

    Attributes:
        headers: Celery's and ours.
        properties: Kombu's.
        event: what Flower learns of the sending; empty if it does not.
    """

    headers: bytes
    properties: bytes
    event: bytes


class Express:
    """The short way out of one app.

    Args:
        app: a Celery app.
        open: whether nobody wants to see every message on Celery's way.
    """

    def __init__(self, app: Any, open: Callable[[], bool]) -> None:
        self._app = app
        self._open = open
        self._usual: dict[str, bool] = {}
        self._forms: dict[tuple[str, str, bool], _Form] = {}
        self._idle: deque[Outlet] = deque()
        os.register_at_fork(after_in_child=self._idle.clear)
        os.register_at_fork(after_in_child=self._forms.clear)  # the process's id is in them

    def lineage(self, job: Job[Any, Any, Any]) -> Lineage | None:
        """What sends; None if messages of this job may not go this way now."""
        if not self.is_open or not self._is_usual(job):
            return None
        parent = self._app.current_worker_task
        if parent is None:
            return _NOBODY
        request = parent._get_request()
        if request.stamped_headers:
            return None
        return Lineage(to_json(request.root_id or request.id), to_json(request.id))

    @property
    def is_open(self) -> bool:
        """Whether anything may go this way now."""
        return not _is_heard() and self._open() and self._suits

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

    def _is_usual(self, job: Job[Any, Any, Any]) -> bool:
        """Whether the job's options say nothing that its messages would have to."""
        if job.name not in self._usual:
            options = {k: v for k, v in job._get_exec_options().items() if v is not None}
            known = {"ignore_result", "serializer", "time_limit", "soft_time_limit"}
            self._usual[job.name] = (
                options.keys() <= known and options.get("serializer", "json") == "json"
            )
        return self._usual[job.name]

    @cached_property
    def _tries(self) -> int:
        """Once more, at once: an idle connection may have been closed."""
        return 2 if self._app.conf.task_publish_retry else 1

    @cached_property
    def _events(self) -> Any:
        """Celery's dispatcher, if Flower is to learn of sending."""
        return self._app.amqp._event_dispatcher if self._app.conf.task_send_sent_event else None

    def send(self, job: Job[Any, Any, Any], parcels: Sequence[Parcel], lineage: Lineage) -> None:
        """Send them, to each queue in their order.

        Raises:
            kombu.exceptions.OperationalError: they may or may not be in their queues.
        """
        loads: dict[str, tuple[str, list[bytes], list[bytes]]] = {}
        for parcel in parcels:
            form = self._form(job, parcel.queue, parcel.causation_id is not None)
            element, event = self._filled(form, parcel, lineage)
            _, elements, events = loads.setdefault(parcel.queue, (parcel.job_id, [], []))
            elements.append(element)
            events.append(event)
        for queue, load in loads.items():
            self._push(queue, *load)

    def forward(self, queue: str, letters: Sequence[Letter]) -> None:
        """Send what was put into a drawer, in its order.

        Raises:
            kombu.exceptions.OperationalError: they may or may not be in their queue.
        """
        elements = [
            _message(
                letter.body,
                to_json(letter.headers),
                to_json({**letter.properties, **_properties(2, "", queue, new_id())}),
            )
            for letter in letters
        ]
        sent = [letter.sent for letter in letters] if self._events else []
        events = [to_json(self._sent_event(one, queue)) for one in sent]
        self._push(queue, letters[0].id, elements, events)

    def _push(
        self, queue: str, first: str, elements: Sequence[bytes], events: Sequence[bytes]
    ) -> None:
        also = [self._announcement(events, tag=first)] if self._events else []
        try:
            outlet = self._idle.pop()  # one that no other thread has now
        except IndexError:
            outlet = Outlet(self._app.connection_for_write())
        try:
            for left in reversed(range(self._tries)):
                try:
                    outlet.push(queue, elements, *also)
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

    def _form(self, job: Job[Any, Any, Any], queue: str, caused: bool) -> _Form:
        key = (job.name, queue, caused)
        if key not in self._forms:
            self._forms[key] = self._make_form(job, queue, caused)
        return self._forms[key]

    def _make_form(self, job: Job[Any, Any, Any], queue: str, caused: bool) -> _Form:
        ours = first_headers(job.contract, _LATER, _LATER if caused else None, tracked=_LATER)
        headers = {
            **_celery_headers(job),
            "id": _LATER,
            "root_id": _LATER,
            "parent_id": _LATER,
            "argsrepr": _LATER,
            "origin": anon_nodename(),
            "ignore_result": _LATER,
            **ours,
            PRODUCED_AT: _LATER,
        }
        properties = {"correlation_id": _LATER, "reply_to": _LATER}
        sent = {**told(_LATER, job.name, headers), **dict.fromkeys(_MOMENT, _LATER)}
        return _Form(
            _stencil(headers),
            _stencil({**properties, **_properties(2, "", queue, _LATER)}),
            _stencil(self._sent_event(sent, queue)) if self._events else b"",
        )

    def _sent_event(self, sent: dict[str, Any], queue: str) -> dict[str, Any]:
        """An event of Celery's."""
        way = {"queue": queue, "exchange": "", "routing_key": queue}
        return {**self._events._prepare_event("task-sent", way), **sent}

    def _filled(self, form: _Form, parcel: Parcel, lineage: Lineage) -> tuple[bytes, bytes]:
        """The message, and what Flower learns of it."""
        job_id, shown = to_json(parcel.job_id), to_json(parcel.shown)
        root_id = lineage.root or job_id
        cause = () if parcel.causation_id is None else (to_json(parcel.causation_id),)
        headers = form.headers % (
            job_id,
            root_id,
            lineage.parent,
            shown,
            to_json(parcel.ignore_result),
            to_json(parcel.correlation_id),
            *cause,
            to_json(parcel.produced_at),
            to_json(parcel.tracked),
        )
        if parcel.more:
            headers = headers[:-1] + b"," + to_json(parcel.more)[1:]
        properties = form.properties % (job_id, to_json(self._app.thread_oid), to_json(new_id()))
        element = _message(b"[[" + parcel.payload + _BODY_END, headers, properties)
        if not self._events:
            return element, b""
        clock = self._events.clock.forward()
        moment = (to_json(utcoffset()), to_json(clock), to_json(time()))
        return element, form.event % (*moment, job_id, shown, root_id, lineage.parent)

    def _announcement(self, events: Sequence[bytes], tag: str) -> tuple[str, str, bytes]:
        """The same of all: exchange, routing key, message."""
        exchange = self._events.exchange.name
        one = len(events) == 1
        routing_key = "task.sent" if one else "task.multi"
        message = _message(
            events[0] if one else b"[%b]" % b",".join(events),
            to_json(self._events.headers),
            _event_properties(exchange, routing_key) % to_json(tag),
        )
        return exchange, routing_key, message


def _is_heard() -> bool:
    """Whether anything listens to one of Celery's signals of sending."""
    before, after = signals.before_task_publish, signals.after_task_publish
    return bool(before.receivers or after.receivers or signals.task_sent.receivers)


def _celery_headers(job: Job[Any, Any, Any]) -> dict[str, Any]:
    """Protocol 2, as `celery.app.amqp.AMQP.as_task_v2` fills it, but for what varies."""
    return {
        "lang": "py",
        "task": job.name,
        "shadow": None,
        "eta": None,
        "expires": None,
        "group": None,
        "group_index": None,
        "retries": 0,
        "timelimit": [job.time_limit, job.soft_time_limit],
        "kwargsrepr": "",
        "replaced_task_nesting": 0,
        "stamped_headers": None,
        "stamps": {},
    }


def _properties(mode: int, exchange: str, routing_key: str, tag: str) -> dict[str, Any]:
    return {
        "delivery_mode": mode,
        "delivery_info": {"exchange": exchange, "routing_key": routing_key},
        "delivery_tag": tag,
        "priority": 0,
        "body_encoding": "base64",
    }


@cache
def _event_properties(exchange: str, routing_key: str) -> bytes:
    return _stencil(_properties(1, exchange, routing_key, _LATER))


def _message(body: bytes, headers: bytes, properties: bytes) -> bytes:
    """Kombu's envelope, as its virtual transports write it."""
    return (
        b'{"body":"%b","content-encoding":"utf-8","content-type":"application/json",'
        b'"headers":%b,"properties":%b}' % (b64encode(body), headers, properties)
    )

"""The short way out: a message made in one go, past what Celery and Kombu do for each anew.

Celery builds, routes and encodes every message anew, though all messages of a job differ in a few
fields only. Here the rest is made once for each job, as is what Flower learns of a sending. The
message is the same; whatever is unusual (a delay, a signal's receiver, routes, another broker)
takes Celery's way. How a message looks and goes out is the broker's: `umbel.producers.leased` and
`umbel.producers.confirmed`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from time import time
from typing import Any, NamedTuple

from celery import signals
from celery.utils.nodenames import anon_nodename
from celery.utils.time import utcoffset
from pydantic_core import to_json

from umbel.jobs.job import Job
from umbel.jobs.wire import PRODUCED_AT, first_headers
from umbel.routing.drawer import Letter, told

BODY = b'[[%b],{},{"callbacks":null,"errbacks":null,"chain":null,"chord":null}]'
"""Of protocol 2, around the payload."""

LATER: Any = "\0"
"""Stands for a value that is still to come."""

_MOMENT = ("utcoffset", "clock", "timestamp")
"""The fields of an event that say when it was."""


def stencil(whole: dict[str, Any]) -> bytes:
    """As JSON, with ``%b`` for each value that is `LATER`."""
    return to_json(whole).replace(b"%", b"%%").replace(to_json(LATER), b"%b")


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
    """Celery's ids of the first task and of the one that sends; none where no job sends."""

    root: str | None = None
    parent: str | None = None


class Quoted(NamedTuple):
    """What message and event have in common, as JSON."""

    job_id: bytes
    shown: bytes
    root_id: bytes
    parent_id: bytes


class _Form(NamedTuple):
    """What all messages of a job to one queue have in common.

    Attributes:
        message: as the broker's class has prepared it.
        event: what Flower learns of the sending, a stencil; empty if it does not.
    """

    message: Any
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
        os.register_at_fork(after_in_child=self._forms.clear)  # the process's id is in them

    def _reaches(self) -> bool:
        """Whether this is a way to the app's broker."""
        raise NotImplementedError

    def _prepared(self, headers: dict[str, Any], queue: str) -> Any:
        """What all messages to a queue share; in the headers, `LATER` is what they do not."""
        raise NotImplementedError

    def _filled(self, prepared: Any, parcel: Parcel, lineage: Lineage, quoted: Quoted) -> Any:
        """A message."""
        raise NotImplementedError

    def _of(self, letter: Letter, queue: str) -> Any:
        """The message that a letter is."""
        raise NotImplementedError

    def _push(
        self, queue: str, first: str, messages: Sequence[Any], events: list[bytes]
    ) -> Iterator[int]:
        """Send all, the first first.

        Args:
            queue: where to.
            first: the id of the first.
            messages: as made here.
            events: what Flower learns of each, as JSON; or none.

        Yields:
            How many more the broker has.

        Raises:
            kombu.exceptions.OperationalError: they may or may not be in their queue.
        """
        raise NotImplementedError

    def close(self) -> None:
        """Close the connections."""

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
        return Lineage(request.root_id or request.id, request.id)

    @property
    def is_open(self) -> bool:
        """Whether anything may go this way now."""
        return not _is_heard() and self._open() and self._suits

    def takes(self, letters: Sequence[Letter]) -> bool:
        """Whether what was put into a drawer may go this way now."""
        plain = not any("priority" in letter.properties for letter in letters)
        return plain and self.is_open

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
            and self._reaches()
        )

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
    def _events(self) -> Any:
        """Celery's dispatcher, if Flower is to learn of sending."""
        return self._app.amqp._event_dispatcher if self._app.conf.task_send_sent_event else None

    def send(self, job: Job[Any, Any, Any], parcels: Sequence[Parcel], lineage: Lineage) -> None:
        """Send them, to each queue in their order.

        Raises:
            kombu.exceptions.OperationalError: they may or may not be in their queues.
        """
        loads: dict[str, tuple[str, list[Any], list[bytes]]] = {}
        for parcel in parcels:
            form = self._form(job, parcel.queue, parcel.causation_id is not None)
            quoted = Quoted(
                to_json(parcel.job_id),
                to_json(parcel.shown),
                to_json(lineage.root or parcel.job_id),
                to_json(lineage.parent),
            )
            _, messages, events = loads.setdefault(parcel.queue, (parcel.job_id, [], []))
            messages.append(self._filled(form.message, parcel, lineage, quoted))
            if form.event:
                events.append(self._told(form.event, quoted))
        for queue, load in loads.items():
            sum(self._push(queue, *load))

    def forward(self, queue: str, letters: Sequence[Letter]) -> Iterator[int]:
        """Send what was put into a drawer, in its order.

        Yields:
            How many more the broker has.

        Raises:
            kombu.exceptions.OperationalError: they may or may not be in their queue.
        """
        sent = [letter.sent for letter in letters] if self._events else []
        events = [to_json(self._sent_event(one, queue)) for one in sent]
        messages = [self._of(letter, queue) for letter in letters]
        yield from self._push(queue, letters[0].id, messages, events)

    def _form(self, job: Job[Any, Any, Any], queue: str, caused: bool) -> _Form:
        key = (job.name, queue, caused)
        if key not in self._forms:
            self._forms[key] = self._make_form(job, queue, caused)
        return self._forms[key]

    def _make_form(self, job: Job[Any, Any, Any], queue: str, caused: bool) -> _Form:
        ours = first_headers(job.contract, LATER, LATER if caused else None, tracked=LATER)
        headers = {
            **_celery_headers(job),
            "id": LATER,
            "root_id": LATER,
            "parent_id": LATER,
            "argsrepr": LATER,
            "origin": anon_nodename(),
            "ignore_result": LATER,
            **ours,
            PRODUCED_AT: LATER,
        }
        sent = {**told(LATER, job.name, headers), **dict.fromkeys(_MOMENT, LATER)}
        event = stencil(self._sent_event(sent, queue)) if self._events else b""
        return _Form(self._prepared(headers, queue), event)

    def _sent_event(self, sent: dict[str, Any], queue: str) -> dict[str, Any]:
        """An event of Celery's."""
        way = {"queue": queue, "exchange": "", "routing_key": queue}
        return {**self._events._prepare_event("task-sent", way), **sent}

    def _told(self, event: bytes, quoted: Quoted) -> bytes:
        """What Flower learns of a message."""
        clock = self._events.clock.forward()
        return event % (to_json(utcoffset()), to_json(clock), to_json(time()), *quoted)

    def _together(self, events: list[bytes]) -> tuple[str, bytes]:
        """Some events as one message: its routing key and its body."""
        if len(events) == 1:
            return "task.sent", events[0]
        return "task.multi", b"[%b]" % b",".join(events)


_NOBODY = Lineage()


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

"""The way back: a dead letter's message goes to its queue again, after a worker's own checks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic, sleep
from typing import Any, Protocol, Unpack

from celery.app.amqp import task_message
from kombu.serialization import prepare_accept_content
from pydantic import TypeAdapter

from umbel.config.errors import MessageRefused, UnknownQueue
from umbel.config.settings import Settings
from umbel.config.store import Store
from umbel.consumers.deadletters import DeadLetter, Reason
from umbel.consumers.inspection import Misfit
from umbel.consumers.letterbox import DeadLetters, Which
from umbel.consumers.rehearsal import UNKNOWN_TYPE, message_of, rehearse
from umbel.jobs.job import Job
from umbel.jobs.records import JobState, Records
from umbel.jobs.saga_records import SagaRecords
from umbel.jobs.subscription import Subscription
from umbel.jobs.wire import DELIVERIES, ON_FAILURE, RETURNS, SAGA, Envelope
from umbel.routing.valkey import RAW_HEADER, Leased, Outlet

# What a broker counted or decoded, and the time to which a message was put off.
_OF_THE_DELIVERY = frozenset({"x-delivery-count", "x-acquired-count", RAW_HEADER})
_OF_THE_RUNS = frozenset({"eta", DELIVERIES, RETURNS})
_PROPERTIES = {
    "correlation_id": str,
    "reply_to": str,
    "priority": int,
    "message_id": str,
    "type": str,
    "app_id": str,
}

_TIME = TypeAdapter(datetime)


@dataclass(frozen=True)
class Replayed:
    """What came of one letter.

    Attributes:
        id: the letter's.
        job: the job's name.
        queue: where the message went, or would go.
        problem: why the letter stays; empty when the message went, or would go.
    """

    id: str
    job: str
    queue: str
    problem: str = ""


class ReplayApp(Protocol):
    """What replays need of the app."""

    amqp: Any
    conf: Any
    tasks: Any
    jobs: dict[str, Job[Any, Any, Any]]
    subscriptions: dict[str, Subscription]

    @property
    def records(self) -> Records: ...
    @property
    def saga_records(self) -> SagaRecords: ...
    @property
    def sender(self) -> Reaching: ...
    def producer_or_acquire(self) -> AbstractContextManager[Any]:
        """One of Celery's producers."""

    def connection_for_write(self) -> Any:
        """A new connection to where messages go."""


class Reaching(Protocol):
    """What replays need of the producer side, which they do not import."""

    def reachable(self, name: str) -> AbstractContextManager[None]:
        """The broker's errors as ours."""


class _Stays(Exception):
    """A letter that cannot go; says why."""


class DeadLetterOffice(DeadLetters):
    """The dead letters of one app, and the way back.

    Args:
        store: where they are.
        namespace: the app's prefix of every key.
        settings: with the bounds.
        app: which sends.
    """

    def __init__(self, store: Store, namespace: str, settings: Settings, app: ReplayApp) -> None:
        super().__init__(store, namespace, settings)
        self._app = app

    def replay(
        self,
        *ids: str,
        to: str | None = None,
        raw: bool = False,
        dry_run: bool = False,
        rate: float | None = None,
        tell: Callable[[Replayed], None] | None = None,
        **which: Unpack[Which],
    ) -> list[Replayed]:
        """Send messages again, the oldest first; a letter goes once the broker has its message.

        The message is as it was (headers, body, ids); runs are counted anew, and nothing is put
        off. A tracked job is queued again, so that a handle finds it. What a worker would refuse
        today, has expired, or whose job has not failed stays, with the problem said.

        A replay that is interrupted between the broker's answer and the removal leaves the letter,
        and its message is sent again by the next. Where the job is tracked that is refused as long
        as its record says that it runs or has succeeded.

        Args:
            ids: of letters, or of their jobs; without any and without `which`, all.
            to: a queue of this app, by default each letter's own.
            raw: the bytes as they came, unchecked: for what could not be decoded.
            dry_run: check only; nothing changes.
            rate: most messages of a second.
            tell: called with each result as it is known.
            which: what has to hold besides.

        Raises:
            UnknownJob: there is no letter of an id; nothing was sent.
            UnknownQueue: this app has no queue `to`; nothing was sent.
            BrokerUnavailable: no answer in time; that letter and those after it are still there.
        """
        _ = self._app.tasks  # finalised: only now it has all its queues
        if to:
            self._known(to)
        pace, results = Pace(rate), []
        for letter in self.find(*ids, oldest_first=True, page=1, **which):
            queue = to or letter.queue
            try:
                self._replay(letter, queue, raw, None if dry_run else pace)
                result = Replayed(letter.id, letter.job, queue)
            except (_Stays, UnknownQueue, MessageRefused) as problem:
                result = Replayed(letter.id, letter.job, queue, str(problem))
            results.append(result)
            if tell:
                tell(result)
        return results

    def _replay(self, letter: DeadLetter, queue: str, raw: bool, pace: Pace | None) -> None:
        """One; without a pace, only the checks."""
        self._known(queue)
        if not raw:
            self._check(letter, queue)
        self._begin_anew(letter, dry_run=True)
        if pace is None:
            return
        pace.wait()
        if not self.is_there(letter):
            raise _Stays("is gone meanwhile: somebody else replayed or discarded it")
        self._begin_anew(letter)
        try:
            self._send(letter, queue, raw)
        except MessageRefused:
            if self._tracked(letter):
                self._app.records.ended(letter.job_id, JobState.FAILED, letter.error)
            raise
        self._remove([letter])

    def _known(self, queue: str) -> None:
        known = self._app.amqp.queues
        if queue not in known:
            raise UnknownQueue(
                f"no queue {queue!r} in this app; there are: {', '.join(sorted(known))}"
            )

    def _check(self, letter: DeadLetter, queue: str) -> None:
        """What a worker would look at, with today's code."""
        accept = prepare_accept_content(self._app.conf.accept_content)
        try:
            rehearse(self._app, message_of(letter, accept, queue))
        except Misfit as misfit:
            as_they_came = "; --raw sends its bytes as they came"
            hint = as_they_came if misfit.reason is Reason.MALFORMED else ""
            raise _Stays(f"{misfit.error}{hint}") from misfit
        if expires := letter.headers.get("expires"):
            _refuse_expired(expires)

    def _tracked(self, letter: DeadLetter) -> bool:
        """Whether there is, or was, a record."""
        tracked = Envelope.read(letter.headers).tracked
        if tracked is None:
            tracked = letter.job in self._app.jobs and not letter.headers.get("ignore_result")
        return tracked and bool(letter.job_id)

    def _begin_anew(self, letter: DeadLetter, *, dry_run: bool = False) -> None:
        saga, told = (letter.headers.get(name) for name in (SAGA, ON_FAILURE))
        if saga and told and not self._app.saga_records.waits_for(str(saga), letter.job_id):
            raise _Stays(f"saga {saga} no longer waits for it: discard it")
        if not self._tracked(letter):
            return
        burial = f"{letter.id} {letter.died_at.timestamp()}"
        state = self._app.records.replayed(letter.job_id, letter.job, burial, dry_run=dry_run)
        match state:
            case None:
                return
            case JobState.QUEUED | JobState.RUNNING | JobState.RETRYING:
                raise _Stays(f"its job is {state.value} again: wait for its end")
            case _:
                raise _Stays(f"its job has {state.value} meanwhile: discard it")

    def _send(self, letter: DeadLetter, queue: str, raw: bool) -> None:
        """When this returns, the broker has it."""
        with self._app.sender.reachable(letter.job or "a message"):
            if letter.headers.get(RAW_HEADER) and self._send_element(queue, letter.body):
                return
            with (
                self._app.producer_or_acquire() as producer,
                producer.connection._reraise_as_library_errors(),
            ):
                self._app.amqp.send_task_message(
                    *(producer, letter.job, _message(letter, raw)),
                    queue=self._app.amqp.queues[queue],
                )

    def _send_element(self, queue: str, element: bytes) -> bool:
        """What came without an envelope goes without one, where there are such queues."""
        connection = self._app.connection_for_write()
        if not isinstance(connection.transport, Leased):
            connection.close()
            return False
        with closing(Outlet(connection)) as outlet:
            outlet.push(queue, [element])
        return True


class Pace:
    """Not more often than so many times a second.

    Args:
        rate: how often; None for any.
    """

    def __init__(self, rate: float | None) -> None:
        self._pause_s = 1 / rate if rate else 0.0
        self._next = monotonic()

    def wait(self) -> None:
        """Until the next time."""
        pause_s = self._next - monotonic()
        if pause_s > 0:
            sleep(pause_s)
        self._next = max(self._next, monotonic()) + self._pause_s


def _message(letter: DeadLetter, raw: bool) -> Any:
    """As Celery sends one."""
    without = _OF_THE_DELIVERY if raw else _OF_THE_DELIVERY | _OF_THE_RUNS
    headers = {name: value for name, value in letter.headers.items() if name not in without}
    properties = {
        name: value
        for name, kind in _PROPERTIES.items()
        if isinstance(value := letter.properties.get(name), kind)
    }
    content = {
        "content_type": letter.content_type or UNKNOWN_TYPE,
        "content_encoding": letter.content_encoding or "binary",
    }
    again = {} if raw else {"retries": 0}
    return task_message(headers | again, properties | content, letter.body, None)


def _refuse_expired(expires: Any) -> None:
    at = _TIME.validate_python(expires)
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    if at <= datetime.now(UTC):
        raise _Stays(f"it expired at {at:%Y-%m-%d %H:%M:%S} UTC, its sender's wish: discard it")

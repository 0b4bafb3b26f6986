"""Sending: where each message goes out, checked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from itertools import groupby
from typing import Any, Protocol, TypeVar

from redis.exceptions import ReadOnlyError, ResponseError

from umbel.config.errors import BrokerUnavailable, ContractError, MessageRefused, StoreRequired
from umbel.jobs.context import current
from umbel.jobs.contracts import Event, Message, contract_of
from umbel.jobs.handle import Receipt
from umbel.jobs.job import Job
from umbel.jobs.outages import AWAY
from umbel.jobs.records import Records
from umbel.jobs.wire import (
    CORRELATION_ID,
    TRACKED,
    Checked,
    Sealed,
    event_headers,
    first_headers,
    new_id,
    now,
    shown,
)
from umbel.producers.express import Express, Parcel
from umbel.producers.publisher import Publisher
from umbel.routing.drawer import Drawer, Letter
from umbel.routing.rabbitmq import Refused
from umbel.routing.shards import ShardMaps

T = TypeVar("T")
Options = dict[str, Any]

AT_ONCE = 1000
"""Most messages of one round trip."""

_SHORT = {"task_id", "headers", "queue"}
"""The options of a message that may go the short way."""

_NOT_TAKEN = (*AWAY, ResponseError)

_drawer: ContextVar[Drawer | None] = ContextVar("drawer", default=None)


class Fallback(Protocol):
    """Where messages go while the broker is away."""

    @property
    def in_use(self) -> bool:
        """Whether they go there without the broker being asked."""

    def keep(self, letters: Sequence[Letter], why: BrokerUnavailable | None) -> None:
        """Keep them; raises `BrokerUnavailable` if that cannot be done either."""


class Sender:
    """The producer side of one app.

    Args:
        express: the short way.
        publisher: the way of events.
        records: what is known of tracked jobs, as a function, since a producer that tracks
            nothing needs no store.
        broker_name: the broker's URL without its password, for errors, as a function likewise.
        timeout_s: longest time of a send, for errors.
        shard_maps: of queues with shards, as a function likewise.
        fallback: where messages go while the broker is away, if anywhere; likewise.
    """

    def __init__(
        self,
        *,
        express: Express,
        publisher: Publisher,
        records: Callable[[], Records],
        broker_name: Callable[[], str],
        timeout_s: float,
        shard_maps: Callable[[], ShardMaps],
        fallback: Callable[[], Fallback | None] = lambda: None,
    ) -> None:
        self._express = express
        self._publisher = publisher
        self._records = records
        self._broker_name = broker_name
        self._timeout_s = timeout_s
        self._shard_maps = shard_maps
        self._fallback = fallback

    def send(self, job: Job[Any, Any, Any], message: Any, options: Options) -> Receipt:
        """Fire and forget; tracked, without a result, only where the sender named the job."""
        tracked = "task_id" in options
        return Receipt(self._publish(job, message, options, tracked, ignore_result=True), job.name)

    def send_many(self, job: Job[Any, Any, Any], messages: Iterable[Any]) -> list[Receipt]:
        """Fire and forget, together: all are checked before the first is sent."""
        lineage = None if self._fallback() else self._express.lineage(job)
        if lineage is None:
            checked = [job.contract.checked(message) for message in messages]
            return [self.send(job, message, {}) for message in checked]
        parcels = [
            self._parcel(job, message, {}, tracked=False, ignore_result=True)
            for message in messages
        ]
        with self.reachable(job.name):
            for start in range(0, len(parcels), AT_ONCE):
                self._express.send(job, parcels[start : start + AT_ONCE], lineage)
        return [Receipt(parcel.job_id, job.name) for parcel in parcels]

    def publish(self, event: Event) -> Receipt:
        """To whoever has subscribed."""
        if not isinstance(event, Event):
            problem = f"expected an Event, got a {type(event).__name__}; a job's message is sent"
            raise ContractError(getattr(event, "contract_name", "event"), [problem])
        contract = type(event)
        name, _ = contract_of(contract)
        checked = contract.checked(event)
        event_id = new_id()
        ours = first_headers(contract, *_causes({}, event_id), tracked=False)
        headers = event_headers(event_id, self._publisher.source, ours)
        what = (name, event_id, checked.payload(), shown(checked), headers)

        def emit(drawer: Drawer | None) -> None:
            with self.reachable(name):
                self._publisher.emit(*what, drawer=drawer)

        self._out(emit)
        return Receipt(event_id, name)

    def request(self, job: Job[Any, Any, Any], message: Any, options: Options) -> str:
        """Tracked; returns the job's id."""
        self._records()  # no store is an error before anything is sent
        return self._publish(job, message, options, True, ignore_result=False)

    def _publish(
        self,
        job: Job[Any, Any, Any],
        message: Any,
        options: Options,
        tracked: bool,
        ignore_result: bool,
    ) -> str:
        if not self._fallback() and not _drawer.get():
            return self._to_broker(job, message, options, tracked, ignore_result)
        # It may be sent twice: named, and tracked, copies are known.
        options["task_id"] = options.get("task_id") or new_id()

        def publish(drawer: Drawer | None) -> str:
            if drawer is None:
                return self._to_broker(job, message, dict(options), True, ignore_result)
            return self._into(drawer, job, message, dict(options), ignore_result)

        return self._out(publish)

    def _to_broker(
        self,
        job: Job[Any, Any, Any],
        message: Any,
        options: Options,
        tracked: bool,
        ignore_result: bool,
    ) -> str:
        try:
            lineage = self._express.lineage(job) if options.keys() <= _SHORT else None
            if lineage:
                parcel = self._parcel(job, message, options, tracked, ignore_result)
                self._express.send(job, [parcel], lineage)
                return parcel.job_id
            headers = {TRACKED: tracked, **options.pop("headers", {})}
            result = job.apply_async(
                (message,), headers=headers, ignore_result=ignore_result, **options
            )
            return str(result.id)
        except _NOT_TAKEN as error:
            raise self._not_taken(job.name, error) from error

    def _into(
        self,
        drawer: Drawer,
        job: Job[Any, Any, Any],
        message: Any,
        options: Options,
        ignore_result: bool,
    ) -> str:
        headers = {TRACKED: True, **options.pop("headers", {})}
        # A result that is wanted would be subscribed to now, on a server that may be away.
        result = job.apply_async(
            (message,), headers=headers, ignore_result=True, producer=drawer, **options
        )
        for letter in drawer.letters:
            letter.headers["ignore_result"] = ignore_result
        return str(result.id)

    def _out(self, send: Callable[[Drawer | None], T]) -> T:
        """To the broker, or into the drawer that is open, or to where the app says instead.

        Args:
            send: called with a drawer, or with None for the broker.
        """
        if drawer := _drawer.get():
            return send(drawer)
        fallback = self._fallback()
        if fallback is None:
            return send(None)
        why = None
        if not fallback.in_use:
            try:
                return send(None)
            except BrokerUnavailable as error:
                why = error
        with self.into(Drawer()) as drawer:
            sent = send(drawer)
        fallback.keep(drawer.letters, why)
        return sent

    @contextmanager
    def into(self, drawer: Drawer) -> Iterator[Drawer]:
        """What is sent in here, by `send`, `request` and `publish`, is put there; nothing goes out.

        It is checked as ever. Its job's record is written by whoever sends it at last.
        """
        token = _drawer.set(drawer)
        try:
            yield drawer
        finally:
            _drawer.reset(token)

    def forward(self, letters: Sequence[Letter]) -> Iterator[int]:
        """Send what was put into a drawer, in its order.

        Yields:
            How many more the broker has.

        Raises:
            MessageRefused: the broker said no to one.
            BrokerUnavailable: no answer in time; some may have been sent.
        """
        for queue, group in groupby(letters, key=lambda one: one.queue):
            some = list(group)
            with self.reachable(some[0].name):
                yield from self._forward(queue, some)

    def _forward(self, queue: str | None, letters: list[Letter]) -> Iterator[int]:
        if tracked := [(one.id, one.name) for one in letters if one.headers.get(TRACKED)]:
            with suppress(StoreRequired):  # whoever wrote them had one
                self._records().all_queued(tracked)
        if queue is not None and self._express.takes(letters):
            yield from self._express.forward(queue, letters)
            return
        for letter in letters:
            self._publisher.forward(letter)
            yield 1

    def _parcel(
        self,
        job: Job[Any, Any, Any],
        message: Any,
        options: Options,
        tracked: bool,
        ignore_result: bool,
    ) -> Parcel:
        payload = job.contract.encoded(message)
        seen = message if isinstance(message, Message) else job.contract.checked(message)
        queue = options.get("queue") or self._queue_for(job, seen)
        job_id = options.get("task_id") or new_id()
        tracked = tracked and self._track(job_id, job.name)
        given = options.get("headers") or {}
        causes = _causes(given, job_id)
        more = {name: value for name, value in given.items() if name != CORRELATION_ID}
        return Parcel(
            job_id, queue, payload, shown(seen), *causes, now(), tracked, more, ignore_result
        )

    def _queue_for(self, job: Job[Any, Any, Any], message: Message) -> str:
        if job.work_queue.shards:
            with suppress(*AWAY) if _drawer.get() else nullcontext():
                self._shard_maps().check(job.work_queue)
        return job.queue_for(message)

    def outgoing(
        self, job: Job[Any, Any, Any], args: Any, kwargs: Any, options: Options
    ) -> tuple[tuple[Checked], Options]:
        """What Celery is to send, from whatever it was asked to: `delay`, a chain, beat, by name.

        Returns:
            The one argument, checked, and Celery's options with the queue and our headers.

        Raises:
            ContractError: there is not exactly one argument, or it does not fit the contract.
        """
        payload = _only_argument(job, args, kwargs)
        if isinstance(payload, Checked):
            options["queue"] = options.get("queue") or job.work_queue.at(None)
            return (payload,), options
        message = job.contract.checked(payload)
        options["queue"] = options.get("queue") or self._queue_for(job, message)
        options["task_id"] = job_id = options.get("task_id") or new_id()
        given = dict(options.get("headers") or {})
        wanted = given.get(TRACKED, not options.get("ignore_result"))
        tracked = wanted and self._track(job_id, job.name)
        ours = first_headers(job.contract, *_causes(given, job_id), tracked=tracked)
        options["headers"] = given | ours
        options["argsrepr"] = shown(message)
        options["kwargsrepr"] = ""
        return (Checked(message.payload()),), options

    def _track(self, job_id: str, name: str) -> bool:
        try:
            records = self._records()
            if not _drawer.get():
                records.queued(job_id, name)
        except StoreRequired:
            return False  # `delay` and `send` work without a store; `request` has asked before
        return True

    @contextmanager
    def reachable(self, name: str) -> Iterator[None]:
        """The broker's errors as ours, for what is sent in here.

        Args:
            name: of what is sent, for people.

        Raises:
            MessageRefused: the broker said no.
            BrokerUnavailable: it did not answer in time.
        """
        try:
            yield
        except _NOT_TAKEN as error:
            raise self._not_taken(name, error) from error

    def _not_taken(self, name: str, error: Exception) -> MessageRefused | BrokerUnavailable:
        problem = f"{name} was not taken by {self._broker_name()}"
        if _is_answer(error):
            return MessageRefused(f"{problem}: {error}")
        return BrokerUnavailable(
            f"{problem} within {self._timeout_s:g} s ({error}). Is the server up? If it may have "
            "been taken, repeat the send with the same job_id."
        )


def _only_argument(job: Job[Any, Any, Any], args: Any, kwargs: Any) -> Any:
    if kwargs or not isinstance(args, list | tuple) or len(args) != 1:
        given = f"{len(args or ())} positional and {len(kwargs or {})} keyword arguments"
        raise ContractError(job.contract.contract_name, [f"expected one message, got {given}"])
    payload = args[0].value if isinstance(args[0], Sealed) else args[0]
    if not isinstance(payload, job.contract | Mapping) and not hasattr(payload, "model_dump"):
        problem = f"expected a {job.contract.__name__} or a mapping, got {type(payload).__name__}"
        raise ContractError(job.contract.contract_name, [problem])
    return payload


def _causes(headers: Mapping[str, Any], job_id: str) -> tuple[str, str | None]:
    """Correlation and causation id: given, or those of the job that we are in."""
    running = current.get()
    inherited = running.correlation_id if running else ""
    return headers.get(CORRELATION_ID) or inherited or job_id, running.job_id if running else None


def _is_answer(error: Exception) -> bool:
    """Whether the server said no; Kombu makes connection errors of Redis' answers too."""
    cause = error.__cause__ or error
    said_no = isinstance(cause, ResponseError) and not isinstance(cause, ReadOnlyError)
    return said_no or isinstance(error, Refused)

"""What waits in queues, in delays and in the dead letters, held beside today's contracts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

from kombu.serialization import prepare_accept_content

from umbel.config.store import Store
from umbel.consumers.deadletters import Reason, describe
from umbel.consumers.inspection import Misfit
from umbel.consumers.letterbox import DeadLetters
from umbel.consumers.rehearsal import RehearsalApp, message_of, rehearse
from umbel.jobs.wire import Envelope
from umbel.routing.rabbitmq import peek as rabbitmq
from umbel.routing.valkey import Leased
from umbel.routing.valkey import peek as valkey

DELAYED, DEAD = "delayed", "dead letters"
MOST_REASONS = 3


@dataclass
class Sample:
    """What was looked at of one version of a contract, in one place.

    Attributes:
        place: a queue's name, ``delayed`` or ``dead letters``.
        contract: its name, as the messages say; else the job's.
        version: as the messages say.
        looked_at: how many messages.
        failing: how many of them today's code would not run.
        reasons: the first reasons, each once.
    """

    place: str
    contract: str
    version: int | None
    looked_at: int = 0
    failing: int = 0
    reasons: list[str] = field(default_factory=list)


@dataclass
class Look:
    """What came of a look.

    Attributes:
        samples: by place, contract and version.
        notes: what was not looked at, and why.
    """

    samples: list[Sample] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def failing(self) -> int:
        """How many would not be run."""
        return sum(sample.failing for sample in self.samples)


class WaitingApp(RehearsalApp, Protocol):
    """What is asked of an app besides."""

    amqp: Any
    conf: Any

    @property
    def prefix(self) -> str: ...
    @property
    def store(self) -> Store | None: ...
    @property
    def dead_letters(self) -> DeadLetters: ...
    def connection_for_read(self) -> Any:
        """A new connection to where messages wait."""


def look(app: WaitingApp, most: int) -> Look:
    """At up to so many messages of each queue, of the delays and of the dead letters.

    On Valkey nothing is taken. On RabbitMQ all messages of a queue are got and given back, which
    the server counts, or none where there are more (`umbel.routing.rabbitmq.peek`); its delays are
    not looked at.

    Args:
        app: with today's code.
        most: messages of each place.
    """
    found = Look()
    samples: dict[tuple[str, str, int | None], Sample] = {}
    accept = prepare_accept_content(app.conf.accept_content)
    for place, message in _messages(app, most, found.notes, accept):
        message.accept = accept
        problem = _problem(app, message)
        key = (place, *_contract(message))
        sample = samples.setdefault(key, Sample(*key))
        sample.looked_at += 1
        if problem:
            sample.failing += 1
            if problem not in sample.reasons and len(sample.reasons) < MOST_REASONS:
                sample.reasons.append(problem)
    found.samples = list(samples.values())
    return found


def _problem(app: WaitingApp, message: Any) -> str:
    try:
        rehearse(app, message)
    except Misfit as misfit:
        return f"{misfit.reason.value}: {misfit.error}"
    except Exception as error:  # whatever a stranger put there, it would be quarantined
        return f"{Reason.MALFORMED.value}: {describe(error)}"
    return ""


def _contract(message: Any) -> tuple[str, int | None]:
    headers = message.headers if isinstance(message.headers, dict) else {}
    envelope, task = Envelope.read(headers), headers.get("task")
    return envelope.contract or (task if isinstance(task, str) else "?"), envelope.version


def _messages(
    app: WaitingApp, most: int, notes: list[str], accept: Any
) -> Iterator[tuple[str, Any]]:
    with app.connection_for_read() as connection:
        connection.ensure_connection(max_retries=1)
        on_valkey = isinstance(connection.transport, Leased)
        yield from (_on_valkey if on_valkey else _on_rabbitmq)(app, connection, most, notes)
    if app.store is None:
        notes.append("dead letters: there is no state store")
        return
    for letter in app.dead_letters.find(limit=most):
        yield DEAD, message_of(letter, accept)


def _on_valkey(
    app: WaitingApp, connection: Any, most: int, notes: list[str]
) -> Iterator[tuple[str, Any]]:
    channel = connection.default_channel
    for queue in sorted(app.amqp.queues):
        total, found = valkey.waiting(channel, queue, most)
        _tell_rest(notes, queue, total, len(found))
        yield from ((queue, message) for message in found)
    for queue, message in valkey.delayed(channel, most):
        if queue in app.amqp.queues:
            yield DELAYED, message


def _on_rabbitmq(
    app: WaitingApp, connection: Any, most: int, notes: list[str]
) -> Iterator[tuple[str, Any]]:
    for queue in sorted(app.amqp.queues):
        total, found, why = rabbitmq.waiting(connection, queue, most)
        _tell_rest(notes, queue, total, len(found), why)
        yield from ((queue, message) for message in found)
    if waits := rabbitmq.delayed(connection, app.prefix):
        notes.append(f"{DELAYED}: {waits} are not looked at: on RabbitMQ that would delay them")


def _tell_rest(notes: list[str], queue: str, total: int, looked_at: int, why: str = "") -> None:
    if total > looked_at:
        notes.append(f"{queue}: {looked_at} of {total} looked at" + (f": {why}" if why else ""))

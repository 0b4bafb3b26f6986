"""Who is measured when: round after round, never one system five times in a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.events import POOL, SYSTEM
from benchmarks.results import Results
from benchmarks.systems import RABBITMQ, VALKEY, Pool

RABBITMQ_WAITING = 100_000  # a million takes it a minute, for each system
FOCUS = ("umbel", "celery")  # whose backlog is an aim: measured again in each round, at both ends
VARIANTS = ("umbel_stripped", "celery_late")  # whose queues are those of the system before


@dataclass(frozen=True)
class Turn:
    """One measurement that is due.

    Attributes:
        broker: `valkey` or `rabbitmq`.
        system: by name.
        pool: its workers.
        sends: sending is timed too: with the first pool, since it is the same for all.
        waiting: the backlog; without one it is a trial.
        subscribers: of an event; without any it is about jobs.
    """

    broker: str
    system: str
    pool: Pool
    sends: bool = False
    waiting: int | None = None
    subscribers: int | None = None

    def __str__(self) -> str:
        waiting = f", {self.waiting:,} waiting" if self.waiting else ""
        subscribers = f", {self.subscribers} subscribers" if self.subscribers else ""
        return f"{self.broker}: {self.system}, {self.pool.name}{waiting}{subscribers}"


def trials(results: Results, brokers: Sequence[str], rounds: int) -> Iterator[list[Turn]]:
    """Every pool of every system; each round begins one further, so that neighbours change."""
    turns = [
        Turn(broker, system, pool, sends=not position)
        for broker in brokers
        for system in results.systems
        for position, pool in enumerate(results.pools(system, broker))
    ]
    for number in range(rounds):
        yield turns[number:] + turns[:number]


def backlogs(
    results: Results, brokers: Sequence[str], rounds: int, sizes: Sequence[int], quick: bool
) -> Iterator[list[Turn]]:
    """Every system in the first round; later, or quick, only those whose ratio is an aim."""
    for number in range(rounds):
        yield [
            Turn(broker, system, pools[0], waiting=waiting)
            for broker in brokers
            for waiting in sizes
            for system in results.systems
            if (pools := results.pools(system, broker))
            and _due(quick or number > 0, broker, system, waiting, sizes)
        ]


def events(brokers: Sequence[str], rounds: int, sizes: Sequence[int]) -> Iterator[list[Turn]]:
    """Umbel's events, by the number of subscribers."""
    for _ in range(rounds):
        yield [
            Turn(broker, SYSTEM, POOL, subscribers=subscribers)
            for broker in brokers
            for subscribers in sizes
        ]


def _due(few: bool, broker: str, system: str, waiting: int, sizes: Sequence[int]) -> bool:
    if system in VARIANTS:
        return False
    if few:
        return broker == VALKEY and system in FOCUS and waiting in (sizes[0], sizes[-1])
    return broker != RABBITMQ or waiting <= RABBITMQ_WAITING

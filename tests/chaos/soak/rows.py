"""What is soaked: each fault, where, and how much of the run's time it gets."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from chaos import faults
from chaos.harness import Scene
from chaos.tally import Strike

VALKEY, RABBITMQ = "valkey", "rabbitmq"
UMBEL, CELERY = "umbel_app", "celery_app"
TURN_MIN = 15.0
"""Minutes after which it all begins again, on fresh scenes."""


@dataclass(frozen=True)
class Row:
    """One fault.

    Attributes:
        fault: what is done to a scene.
        title: what the tables call it.
        share_s: seconds of half an hour that Umbel gets for it, by the name of each broker.
        scenes: of Umbel side by side on Valkey, where what a dead worker held is back after a
            lease: one scene recovers while the next is struck.
        strikes_on_celery: the most that plain Celery gets; 0 where it has nothing of the kind.
        own_store: the records are on a server of their own, also on Valkey.
        least_min: shorter runs leave it out.
    """

    fault: Callable[[Scene], Strike]
    title: str
    share_s: dict[str, float]
    scenes: int = 1
    strikes_on_celery: int = 10
    own_store: bool = False
    least_min: float = 0.0

    @property
    def name(self) -> str:
        """As the command line knows it."""
        return self.fault.__name__


ROWS = (
    Row(faults.kill_worker, "`kill -9` of a worker", {VALKEY: 240, RABBITMQ: 300}, scenes=6),
    Row(
        faults.kill_all_workers, "`kill -9` of all workers", {VALKEY: 220, RABBITMQ: 200}, scenes=6
    ),
    Row(faults.kill_child, "`kill -9` of a pool's child", {VALKEY: 30, RABBITMQ: 30}),
    Row(
        faults.use_up_memory,
        "out of memory in a job",
        {VALKEY: 30, RABBITMQ: 30},
        strikes_on_celery=1,
    ),
    Row(
        faults.stop_worker,
        "a worker stopped for two leases",
        {VALKEY: 90, RABBITMQ: 60},
        strikes_on_celery=2,
    ),
    Row(faults.terminate_worker, "SIGTERM of a worker", {VALKEY: 35, RABBITMQ: 35}),
    Row(faults.rolling_restart, "a restart of all, one by one", {VALKEY: 35, RABBITMQ: 35}),
    Row(
        faults.cut_connections,
        "a worker's connections cut, 5 times in a row",
        {VALKEY: 65, RABBITMQ: 45},
        strikes_on_celery=2,
    ),
    Row(faults.kill_broker, "`kill -9` of the broker, restarted", {VALKEY: 40, RABBITMQ: 60}),
    Row(faults.freeze_broker, "the broker frozen for 2 s", {VALKEY: 35, RABBITMQ: 35}),
    Row(
        faults.kill_store,
        "`kill -9` of the state store, back after 2 s",
        {VALKEY: 35, RABBITMQ: 35},
        strikes_on_celery=0,
        own_store=True,
    ),
    Row(
        faults.outlast_lease,
        "none, to a job of ten leases",
        {VALKEY: 120},
        strikes_on_celery=0,
        least_min=TURN_MIN,
    ),
)


@dataclass(frozen=True)
class Case:
    """A row on one broker for one subject.

    Attributes:
        row: the fault.
        broker: where.
        subject: who goes through it.
        turn: which time in this run, from 1.
    """

    row: Row
    broker: str
    subject: str
    turn: int = 1

    def __str__(self) -> str:
        return f"{self.broker}-{self.row.name}-{self.subject}-{self.turn}"

    @property
    def share_s(self) -> float:
        """Of half an hour; plain Celery's is for some strikes, or for waiting in vain."""
        return self.row.share_s[self.broker] if self.subject == UMBEL else 20.0

    @property
    def scenes(self) -> int:
        """How many go on side by side: where there is something to wait for, which on RabbitMQ and
        with plain Celery there is not."""
        return self.row.scenes if (self.broker, self.subject) == (VALKEY, UMBEL) else 1


def cases(rows: Sequence[Row], brokers: Sequence[str], turns: int, celery: bool) -> Iterator[Case]:
    """All in the order in which they run: Umbel in every turn, plain Celery in the first."""
    for turn in range(1, turns + 1):
        for broker, row in product(brokers, rows):
            if broker in row.share_s and (turn == 1 or not row.least_min):
                yield Case(row, broker, UMBEL, turn)
                if celery and turn == 1 and row.strikes_on_celery:
                    yield Case(row, broker, CELERY)

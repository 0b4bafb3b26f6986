"""The scenes of a case, each with a broker and workers of its own."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import kombu.pools
from support.servers import RabbitMQ, Server, Valkey

from chaos.harness import Scene
from chaos.soak.rows import RABBITMQ, Case
from chaos.tally import Strike

WORKERS, PROCESSES = 2, 2
MANY_DELIVERIES = "20"
"""Strikes come faster here than in life: a job that is hit three times is to be done all the same,
where at the default it is kept as a dead letter."""


@dataclass
class Struck:
    """A scene and what it was put through."""

    number: int
    scene: Scene
    strikes: list[Strike] = field(default_factory=list)

    def named(self, jobs: Iterable[int]) -> list[str]:
        """Jobs as `scene:number`, each scene counts its own."""
        return [f"{self.number}:{job}" for job in sorted(jobs)]


@contextmanager
def staged(
    case: Case, rabbitmq: RabbitMQ | None, directory: Path, seed: int, lease_s: float
) -> Iterator[list[Struck]]:
    """Scenes with their workers, each on a broker of its own."""
    with ExitStack() as stack:
        stage = []
        for number in range(case.scenes):
            home = directory / str(number)
            broker: Server
            if case.broker == RABBITMQ:
                assert rabbitmq is not None
                stack.enter_context(rabbitmq.new_vhost())
                broker = rabbitmq
            else:
                broker = _valkey(stack, home / "broker")
            own_store = case.row.own_store or case.broker == RABBITMQ
            scene = Scene(
                case.subject,
                broker,
                home,
                store=_valkey(stack, home / "store") if own_store else None,
                lease_s=lease_s,
                env={"UMBEL_MAX_DELIVERIES": MANY_DELIVERIES},
                seed=seed + number,
            )
            stack.enter_context(closing(scene))
            stage.append(Struck(number, scene))
        for struck in stage:
            struck.scene.start_workers(WORKERS, concurrency=PROCESSES)
        yield stage
        gc.collect()  # results of Celery's that would unsubscribe later, on a server that is gone
    kombu.pools.reset()  # connections to servers that are gone


def _valkey(stack: ExitStack, directory: Path) -> Valkey:
    directory.mkdir(parents=True)
    return stack.enter_context(closing(Valkey(directory))).start()

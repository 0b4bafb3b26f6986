"""One case: strikes at random moments under a steady load, then all that comes of it."""

from __future__ import annotations

import random
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from support.process import eventually
from support.servers import RabbitMQ

from chaos.brokers import held, kept
from chaos.harness import QUEUE, Scene
from chaos.soak.outcome import Outcome
from chaos.soak.recovery import recoveries_s, running_at
from chaos.soak.rows import UMBEL, Case
from chaos.soak.stage import PROCESSES, Struck, staged
from chaos.tally import Sent

RATE_PER_S, SHARE_OF_LONG = 16.0, 0.05
"""Jobs a second for each scene and how many of them are long: half of its processes are at work."""
PAUSE_S = 0.2, 1.0
"""Between the recovery from one strike and the next."""
WAIT_S, WAIT_FOR_CELERY_S = 60.0, 30.0
"""For what is not back, after the last strike."""
GLANCE_S = 3.0
"""For what plain Celery does not get back, after every other strike."""


def run(
    case: Case,
    rabbitmq: RabbitMQ | None,
    directory: Path,
    *,
    seconds: float,
    seed: int,
    lease_s: float,
) -> Outcome:
    """Put a subject through a fault, once at least, and as often as there is time for.

    Args:
        case: what, where and who.
        rabbitmq: the node, for cases on RabbitMQ.
        directory: for data, effects and logs.
        seconds: when to strike no more.
        seed: of all that is left to chance.
        lease_s: of Umbel's workers.
    """
    ends_at = time.monotonic() + seconds
    outcome = Outcome(case.row.name, case.broker, case.subject, case.turn, seed)
    with _noted(outcome), staged(case, rabbitmq, directory, seed, lease_s) as stage:
        with _noted(outcome), ExitStack() as loads:
            for struck in stage:
                loads.enter_context(struck.scene.load(RATE_PER_S, SHARE_OF_LONG))
            for struck in stage:
                struck.scene.more_runs(10)
            _strike(case, stage, ends_at, outcome, random.Random(seed))
        outcome.waited_s = WAIT_S if case.subject == UMBEL else WAIT_FOR_CELERY_S
        until = time.monotonic() + outcome.waited_s
        for struck in stage:
            with _noted(outcome):
                _take_stock(case, struck, until, outcome)
    return outcome


@contextmanager
def _noted(outcome: Outcome) -> Iterator[None]:
    """A failure ends the block and not the soak: the other cases are still worth their time."""
    try:
        yield
    except Exception as trouble:
        traceback.print_exc(file=sys.stdout)
        outcome.troubles.append(f"{type(trouble).__name__}: {str(trouble)[:300]}")


def _strike(
    case: Case, stage: list[Struck], ends_at: float, outcome: Outcome, chance: random.Random
) -> None:
    """One scene after the other, so that one recovers while another is struck."""
    most, recovery_s = case.row.strikes_on_celery, GLANCE_S
    if case.subject == UMBEL:
        most, recovery_s = sys.maxsize, WAIT_S
    while not outcome.times or (outcome.times < most and time.monotonic() < ends_at):
        struck = stage[outcome.times % len(stage)]
        _recover(struck, recovery_s)
        time.sleep(chance.uniform(*PAUSE_S))
        _stand(struck.scene, outcome)
        struck.scene.more_runs(1)
        outcome.times += 1
        struck.strikes.append(case.row.fault(struck.scene))
        print(f"scene {struck.number}: {struck.strikes[-1]}")


def _recover(struck: Struck, timeout_s: float) -> None:
    """Wait until all that was accepted by now runs in spite of the last strike, or for a time: no
    strike finds what another has left to do."""
    runs = struck.scene.effects.of
    _wait(
        list(struck.scene.sent),
        lambda one: running_at(struck.strikes, runs(one.number)),
        time.monotonic() + timeout_s,
    )


def _wait(sent: Iterable[Sent], come: Callable[[Sent], Any], until: float) -> list[Sent]:
    """Wait until all of these jobs that were accepted have come so far. Returns the others."""
    left = [one for one in sent if one.accepted]
    while True:
        left = [one for one in left if not come(one)]
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.05)


def _done_in(scene: Scene) -> Callable[[Sent], bool]:
    return lambda one: any(run.done_at for run in scene.effects.of(one.number))


def _stand(scene: Scene, outcome: Outcome) -> None:
    """All workers are there with all of their processes; a supervisor starts one that ended."""

    def whole() -> bool:
        for worker in scene.workers:
            if not worker.running:
                outcome.ended_workers += 1
                worker.close()
                worker.start()
        return all(len(worker.children()) >= PROCESSES for worker in scene.workers)

    eventually(whole, 30, "all processes of all workers")


def _take_stock(case: Case, struck: Struck, until: float, outcome: Outcome) -> None:
    """Wait for what is not done, for some time, and add up what there is to say."""
    scene, strikes = struck.scene, struck.strikes
    umbel = case.subject == UMBEL
    _stand(scene, outcome)
    left = {one.number for one in _wait(scene.sent, _done_in(scene), until)}
    if umbel and not left:
        outcome.unsettled += _unsettled(scene, until)
    tally = scene.tally()
    if umbel:
        outcome.wrong_records += struck.named(tally.wrong_records)
        outcome.dead_letters += scene.app.app.dead_letters.count() - len(scene.doomed)
    for worker in scene.workers:
        worker.close()
    there = kept(scene.broker) if left else set()
    outcome.lost += struck.named(left - there)
    outcome.waiting += struck.named(left & there)
    outcome.accepted += len(tally.accepted)
    outcome.refused += len(tally.sent) - len(tally.accepted)
    outcome.twice += struck.named(tally.twice)
    outcome.unexplained += struck.named(tally.unexplained(*strikes))
    outcome.cut_short += sum(not run.done_at for runs in tally.runs.values() for run in runs)
    outcome.recoveries_s += recoveries_s(strikes, tally)
    outcome.runs_of_doomed += [len(scene.effects.of(one.number)) for one in scene.doomed]


def _unsettled(scene: Scene, until: float) -> int:
    """Messages that are still there though all jobs are done; a job that was done just before its
    worker was killed comes back and is done again."""
    while (number := held(scene.broker, QUEUE)) and time.monotonic() < until:
        time.sleep(0.05)
    return number

"""What came of a case, in numbers, and which of them are failures."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from chaos.soak.rows import UMBEL


@dataclass
class Outcome:
    """Of one case; what belongs together is added up by the report. Jobs are `scene:number`.

    Attributes:
        row: the fault, by name.
        broker: where.
        subject: who went through it.
        turn: which time in the run.
        seed: of all that was left to chance.
        times: strikes.
        accepted: jobs whose send returned.
        refused: jobs whose send raised.
        cut_short: runs that began and had no effect.
        lost: jobs that were not done, and are nowhere on the broker.
        waiting: jobs that were not done in time, and are somewhere on the broker.
        waited_s: how long after the last strike that was said.
        twice: jobs with more than one effect.
        unexplained: those of them that no strike explains.
        wrong_records: tracked jobs whose record is not what one of their runs returned.
        dead_letters: beside those of the jobs that were sent to fail.
        runs_of_doomed: of each job that was sent to fail.
        ended_workers: workers that ended by themselves.
        recoveries_s: of each strike; None where a job was not running again.
        unsettled: what was still on the broker when all was done.
        troubles: what else went wrong.
    """

    row: str
    broker: str
    subject: str
    turn: int
    seed: int
    times: int = 0
    accepted: int = 0
    refused: int = 0
    cut_short: int = 0
    lost: list[str] = field(default_factory=list)
    waiting: list[str] = field(default_factory=list)
    waited_s: float = 0.0
    twice: list[str] = field(default_factory=list)
    unexplained: list[str] = field(default_factory=list)
    wrong_records: list[str] = field(default_factory=list)
    dead_letters: int = 0
    runs_of_doomed: list[int] = field(default_factory=list)
    ended_workers: int = 0
    recoveries_s: list[float | None] = field(default_factory=list)
    unsettled: int = 0
    troubles: list[str] = field(default_factory=list)

    def failures(self) -> list[str]:
        """What Umbel promises and did not keep; nothing is asked of plain Celery."""
        if self.subject != UMBEL:
            return []
        return [*self._broken_promises(), *self.troubles]

    def _broken_promises(self) -> Iterable[str]:
        if self.lost:
            yield f"lost: {_numbers(self.lost)}"
        if self.waiting:
            yield f"not done within {self.waited_s:.0f} s: {_numbers(self.waiting)}"
        if self.unexplained:
            yield f"done twice, and no strike explains it: {_numbers(self.unexplained)}"
        if self.wrong_records:
            yield f"the record is wrong: {_numbers(self.wrong_records)}"
        if self.dead_letters:
            yield f"{self.dead_letters} dead letters too many"
        if self.ended_workers:
            yield f"{self.ended_workers} workers ended by themselves"
        if self.unsettled:
            yield f"{self.unsettled} messages not settled, though all jobs are done"

    def __str__(self) -> str:
        """One line for people."""
        known = [one for one in self.recoveries_s if one is not None]
        return (
            f"{self.times} times, {self.accepted} jobs, {self.cut_short} runs cut short, "
            f"{len(self.lost)} lost, {len(self.waiting)} not back, {len(self.twice)} twice"
            + (f", recovered in {max(known):.1f} s at most" if known else "")
        )


def _numbers(jobs: list[str]) -> str:
    return f"{len(jobs)} jobs ({', '.join(jobs[:10])}{', …' * (len(jobs) > 10)})"

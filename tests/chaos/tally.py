"""What was sent and what was done, held against each other.

All times are of the machine's monotonic clock, which its processes share.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

UNSETTLED_S = 1.0
"""Longest time between a job's effect and its acknowledgement, on a busy machine."""


@dataclass(frozen=True)
class Sent:
    """One send.

    Attributes:
        number: of the job.
        at: when it was over.
        accepted: whether it returned; where it raised nobody knows if the broker has the job.
        handle: of a tracked job.
    """

    number: int
    at: float
    accepted: bool
    handle: Any = None


@dataclass(frozen=True)
class Run:
    """One run of a job, by its own account.

    Attributes:
        id: of the run, which is also the job's result.
        number: of the job.
        attempt: which one, by the job's retry policy.
        pid: of the process.
        begun_at: when it began.
        done_at: when its effect was there; None if it never came to that.
    """

    id: str
    number: int
    attempt: int
    pid: int
    begun_at: float
    done_at: float | None = None


@dataclass(frozen=True)
class Strike:
    """A fault that has happened.

    Attributes:
        at: when it began.
        over: from when on nothing was in the way of recovery but recovery itself.
        pids: processes that were hit so that what they were at may be done once more.
    """

    at: float
    over: float
    pids: frozenset[int] = frozenset()

    def hit(self, run: Run) -> bool:
        """Whether it hit this run while it was going on, or not yet acknowledged."""
        unsettled = run.done_at is None or run.done_at + UNSETTLED_S > self.at
        return run.pid in self.pids and run.begun_at <= self.over and unsettled


class Effects:
    """The file that the jobs write, read as it grows."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._read = 0
        self._runs: dict[str, Run] = {}
        self._of: dict[int, list[str]] = {}

    def __len__(self) -> int:
        """Runs that have begun."""
        self._read_on()
        return len(self._runs)

    def of(self, number: int) -> list[Run]:
        """A job's runs so far, in the order in which they began."""
        self._read_on()
        return [self._runs[id] for id in self._of.get(number, ())]

    def _read_on(self) -> None:
        if not self.path.exists() or self.path.stat().st_size == self._read:
            return
        with self.path.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):
                    return  # half of one: the file grows while it is read
                self._read += len(line)
                self._note(*line.decode().split())

    def _note(self, what: str, id: str, *fields: str) -> None:
        number, attempt, pid, at = *map(int, fields[:3]), float(fields[3])
        if what == "begun":
            self._runs[id] = Run(id, number, attempt, pid, at)
            self._of.setdefault(number, []).append(id)
        else:
            self._runs[id] = replace(self._runs[id], done_at=at)


@dataclass(frozen=True)
class Tally:
    """What was sent against what was done.

    Attributes:
        sent: every send.
        runs: of each job, by its number, in the order in which they began.
    """

    sent: tuple[Sent, ...]
    runs: Mapping[int, list[Run]]

    @classmethod
    def of(cls, sent: Iterable[Sent], effects: Effects) -> Tally:
        """As of now."""
        sent = tuple(sent)
        return cls(sent, {one.number: effects.of(one.number) for one in sent})

    @property
    def accepted(self) -> set[int]:
        """Jobs whose send returned."""
        return {sent.number for sent in self.sent if sent.accepted}

    @property
    def done(self) -> Counter[int]:
        """How often each job had its effect."""
        return Counter(run.number for runs in self.runs.values() for run in runs if run.done_at)

    @property
    def lost(self) -> set[int]:
        """Jobs that were accepted and not done."""
        return self.accepted - self.done.keys()

    @property
    def twice(self) -> set[int]:
        """Jobs with more than one effect."""
        return {number for number, times in self.done.items() if times > 1}

    def unexplained(self, *strikes: Strike) -> set[int]:
        """Jobs done more often than the strikes account for: once more for each run they hit."""
        return {
            number
            for number in self.twice
            if self.done[number] - 1
            > sum(strike.hit(run) for run in self.runs[number] for strike in strikes)
        }

    @property
    def wrong_records(self) -> set[int]:
        """Tracked jobs whose record is not what one of their runs returned."""
        return {
            sent.number
            for sent in self.sent
            if sent.handle and not _is_right(sent.handle.record(), self.runs[sent.number])
        }

    def __str__(self) -> str:
        """One line for people."""
        return (
            f"{len(self.sent)} sent, {len(self.accepted)} accepted, {len(self.lost)} lost, "
            f"{len(self.twice)} done twice"
        )


def _is_right(record: Any, runs: Iterable[Run]) -> bool:
    results = {run.id for run in runs if run.done_at}
    return record.state == "succeeded" and record.result in results

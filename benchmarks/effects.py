"""What the jobs did, read from the files that they wrote: see `work.record`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.work import RECORD


@dataclass(frozen=True)
class Effects:
    """When the job of each message first began, and how many ran more than once.

    Attributes:
        first: monotonic time in ns, by the message's number.
        times: of all runs, in order.
    """

    first: dict[int, int]
    times: list[int]

    @property
    def again(self) -> int:
        """Runs beyond the first of each message."""
        return len(self.times) - len(self.first)

    @classmethod
    def read(cls, directory: Path) -> Effects:
        """All records of all processes."""
        records = sorted(
            (at, number)
            for file in directory.iterdir()
            for number, at in RECORD.iter_unpack(_whole(file.read_bytes()))
        )
        first: dict[int, int] = {}
        for at, number in records:
            first.setdefault(number, at)
        return cls(first, [at for at, _ in records])


def _whole(data: bytes) -> bytes:
    return data[: len(data) - len(data) % RECORD.size]


def count(directory: Path) -> int:
    """How many records there are, without reading them."""
    return sum(file.stat().st_size for file in directory.iterdir()) // RECORD.size


def wait_for(directory: Path, total: int, quiet_s: float) -> None:
    """Return when there are `total` records, or when for `quiet_s` there came no new one."""
    seen, since = -1, time.monotonic()
    while seen < total and time.monotonic() < since + quiet_s:
        if (now := count(directory)) != seen:
            seen, since = now, time.monotonic()
        time.sleep(0.05)

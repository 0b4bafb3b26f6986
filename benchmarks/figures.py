"""The arithmetic: rates, percentiles, medians and their spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass


def middle_rate(times_ns: Iterable[int], skip: float = 0.1) -> float:
    """Events a second over the middle of a run: its first and last `skip` are left out.

    Workers start and end at slightly different moments; in the middle all of them are at work.
    """
    times = sorted(times_ns)
    cut = int(len(times) * skip)
    middle = times[cut : len(times) - cut]
    if len(middle) < 2 or middle[-1] == middle[0]:
        return math.nan
    return (len(middle) - 1) / (middle[-1] - middle[0]) * 1e9


def percentile(values: Sequence[float], percent: float) -> float:
    """The nearest-rank percentile: a value that was really measured."""
    if not values:
        return math.nan
    rank = math.ceil(percent / 100 * len(values))
    return sorted(values)[max(rank, 1) - 1]


@dataclass(frozen=True)
class Spread:
    """The median of several runs, the least and the most of them."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Spread | None:
        """None without a single value."""
        known = [value for value in values if value is not None and not math.isnan(value)]
        return cls(statistics.median(known), min(known), max(known)) if known else None

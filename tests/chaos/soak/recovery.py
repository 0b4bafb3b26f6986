"""How long it took from the end of a fault until all was running again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from chaos.tally import Run, Strike, Tally


def recoveries_s(strikes: Sequence[Strike], tally: Tally) -> Iterator[float | None]:
    """For each strike, in their order, the seconds from its `over` until the last job that had
    been accepted by then was running (again or at last) or done; None if one of them never was.

    The time that a job itself takes is no part of it.
    """
    for number, strike in enumerate(strikes, 1):
        times = [
            running_at(strikes[:number], tally.runs[sent.number])
            for sent in tally.sent
            if sent.accepted and sent.at <= strike.over
        ]
        known = [at for at in times if at is not None]
        missing = len(known) < len(times)
        yield None if missing else max(0.0, max(known, default=0.0) - strike.over)


def running_at(strikes: Sequence[Strike], runs: Iterable[Run]) -> float | None:
    """When a job was running or done in spite of these strikes; None if it has not come to that."""
    times = [run.done_at for run in runs if run.done_at]
    times += [run.begun_at for run in runs if not any(strike.hit(run) for strike in strikes)]
    return min(times, default=None)

"""The tables of docs/reliability.md, made from docs/reliability.json alone."""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Iterator
from pathlib import Path

from chaos.soak.outcome import Outcome
from chaos.soak.results import Results
from chaos.soak.rows import CELERY, RABBITMQ, ROWS, UMBEL, VALKEY

BEGIN, END = "<!-- soak: begin -->", "<!-- soak: end -->"
TITLES = {VALKEY: "Valkey", RABBITMQ: "RabbitMQ"}
SUBJECTS = {UMBEL: "**Umbel**", CELERY: "plain Celery"}
HEAD = (
    "fault",
    "",
    "times",
    "jobs",
    "runs cut short",
    "lost",
    "not back",
    "done twice",
    "workers ended",
    "back after, median",
    "at most",
)
KILLS = ("kill_worker", "kill_all_workers")
AIM_KILLS, AIM_S = 100, 15.0


def write(results: Results, directory: Path) -> None:
    """Put the tables between the marks of `reliability.md`, or into a new one."""
    path = directory / "reliability.md"
    text = path.read_text() if path.exists() else f"{BEGIN}\n{END}\n"
    made = "\n".join([BEGIN, *tables(results), END])
    path.write_text(re.sub(f"{BEGIN}.*{END}", lambda _: made, text, flags=re.DOTALL))


def tables(results: Results) -> Iterator[str]:
    """All, as lines of Markdown."""
    about = results.about
    yield ""
    yield f"{about['date']}; {about['machine']}; {', '.join(about['servers'] + about['packages'])};"
    yield f"{about['options']['minutes']:g} minutes, seed {about['options']['seed']}."
    yield ""
    yield from _aims(results)
    for broker in about["options"]["brokers"]:
        yield f"### On {TITLES[broker]}"
        yield ""
        yield f"| {' | '.join(HEAD)} |"
        yield "|---" * len(HEAD) + "|"
        for row in ROWS:
            for subject in (UMBEL, CELERY):
                key = (row.name, broker, subject)
                same = [
                    one for one in results.outcomes if (one.row, one.broker, one.subject) == key
                ]
                if same:
                    title = row.title if subject == UMBEL else ""
                    yield f"| {title} | {SUBJECTS[subject]} | {' | '.join(_cells(same))} |"
        yield ""
    for failure in results.failures():
        yield f"- **{failure}**"
    for one in results.outcomes:
        if one.subject == CELERY:
            yield from (f"- plain Celery, {one.broker}, {one.row}: {what}" for what in one.troubles)


def _aims(results: Results) -> Iterator[str]:
    for broker in results.about["options"]["brokers"]:
        kills = [one for kill in KILLS for one in results.of(kill, broker, UMBEL)]
        if kills:
            times, gone = sum(one.times for one in kills), sum(_gone(one) for one in kills)
            worst_s = _spread(kills)[1]
            met = times >= AIM_KILLS and not gone and worst_s <= AIM_S
            yield (
                f"- `kill -9` on {TITLES[broker]}: {times} times, {gone} jobs lost, every job back "
                f"within {_seconds(worst_s, kills[0].waited_s)}; the aim is {AIM_KILLS} times, "
                f"0 lost, {AIM_S:g} s: {'met' if met else '**not met**'}."
            )
    yield ""


def _cells(same: list[Outcome]) -> list[str]:
    median_s, worst_s = _spread(same)
    numbers = [
        sum(one.times for one in same),
        sum(one.accepted for one in same),
        sum(one.cut_short for one in same),
        sum(len(one.lost) for one in same),
        sum(len(one.waiting) for one in same),
        sum(len(one.twice) for one in same),
        sum(one.ended_workers for one in same),
    ]
    times = (_seconds(seconds, same[0].waited_s) for seconds in (median_s, worst_s))
    return [*(f"{number:,}" for number in numbers), *times]


def _gone(outcome: Outcome) -> int:
    return len(outcome.lost) + len(outcome.waiting)


def _spread(same: list[Outcome]) -> tuple[float, float]:
    """Median and worst of the recoveries; infinite where somebody was not back."""
    times = [math.inf if one is None else one for outcome in same for one in outcome.recoveries_s]
    return (statistics.median_low(times), max(times)) if times else (math.nan, math.nan)


def _seconds(seconds: float, waited_s: float) -> str:
    if math.isnan(seconds):
        return ""
    return f"{seconds:.1f} s" if math.isfinite(seconds) else f"over {waited_s:.0f} s"

"""The aims that Umbel has set itself, beside what was measured."""

from __future__ import annotations

import math
from collections.abc import Iterator

from benchmarks.figures import Spread
from benchmarks.results import Results
from benchmarks.systems import AT_LEAST_ONCE, VALKEY

PREFORK = "prefork -c 2"
OURS = ("umbel", "umbel_stripped")
Row = tuple[str, str, str, str]


def rows(results: Results) -> list[Row]:
    """Work, aim, what was measured, and whether that meets it; only what was measured."""
    return [row for row in _rows(results) if row]


def _rows(results: Results) -> Iterator[Row | None]:
    def of(measure: str, system: str, pool: str = PREFORK, waiting: int | None = None) -> float:
        spread = results.spread(measure, VALKEY, system, pool, waiting)
        return spread.median if spread else float("nan")

    plain = of("drain", "celery")
    late = of("drain", "celery_late")
    ours = of("drain", "umbel")
    yield _row("drain, prefork", "3 × plain Celery", ours / plain, 3, f"{ours:,.0f}/s")
    yield _row("drain, prefork", "(Celery with late acks)", ours / late, None, f"{late:,.0f}/s")

    best_pool, best = _best(results, ["umbel"])
    others = [
        name
        for name, system in results.systems.items()
        if system["safety"] == AT_LEAST_ONCE and name not in OURS
    ]
    peer, peers_best = _best(results, others)
    work = f"drain, best pool ({best_pool})"
    yield _row(work, "1.4 × every at-least-once peer", best / peers_best, 1.4, f"that is {peer}")
    _, huey = _best(results, ["huey"])
    yield _row(work, "level with huey", best / huey, 1, f"huey {huey:,.0f}/s, at most once")

    sends = of("send", "umbel")
    loop = of("send", "celery")
    yield _row("`send`", "3 × plain Celery", sends / loop, 3, f"{sends:,.0f}/s")
    dramatiq = results.pools("dramatiq", VALKEY) if "dramatiq" in results.systems else []
    if dramatiq:
        theirs = of("send", "dramatiq", dramatiq[0].name)
        yield _row("`send`", "ahead of Dramatiq", sends / theirs, 1, f"{theirs:,.0f}/s")
    many = of("send_many", "umbel")
    yield _row("`send_many`", "10 × Celery's `delay` loop", many / loop, 10, f"{many:,.0f}/s")

    trip, celerys = of("p99_ms", "umbel"), of("p99_ms", "celery")
    note = f"{trip:.2f} ms and {celerys:.2f} ms"
    yield _row("idle round trip p99", "below plain Celery's", trip / celerys, -1, note)
    sizes = sorted({entry["waiting"] for entry in results.samples if entry["waiting"]})
    if sizes:
        for measure, what in (("drain_us", "get one done"), ("send_us", "send one")):
            few, many = (of(measure, "umbel", waiting=size) for size in (sizes[0], sizes[-1]))
            work = f"{what}, {sizes[-1]:,} waiting"
            aim = f"within 1.2 × of that at {sizes[0]:,}"
            yield _row(work, aim, many / few, -1.2, f"{few:,.0f} and {many:,.0f} µs")
    soak = "measured by `make soak`"
    yield "a job of 10 × the lease time", "runs once", soak, ""
    yield "`kill -9` of workers", "every job again within 15 s, 0 lost in 100 kills", soak, ""


def _best(results: Results, systems: list[str]) -> tuple[str, float]:
    """The fastest drain of these systems' pools: whose, and its median."""
    found: list[tuple[float, str]] = []
    for name in systems:
        if name not in results.systems:
            continue
        for pool in results.pools(name, VALKEY):
            spread: Spread | None = results.spread("drain", VALKEY, name, pool.name)
            if spread:
                title = results.systems[name]["title"]
                found.append((spread.median, pool.name if systems == [name] else title))
    median, whose = max(found, default=(float("nan"), ""))
    return whose, median


def _row(work: str, aim: str, ratio: float, bound: float | None, note: str) -> Row | None:
    """A negative bound is one to stay within; None where there is no aim."""
    if math.isnan(ratio):  # nothing to compare with
        return None
    met = bound is not None and (ratio >= bound if bound > 0 else ratio <= -bound)
    verdict = "" if bound is None else ("met" if met else "**not met**")
    return work, aim, f"{ratio:.2f} × ({note})", verdict

"""`results.md`: the tables, made from `results.json` alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.aims import rows
from benchmarks.figures import Spread
from benchmarks.results import Results
from benchmarks.systems import RABBITMQ, VALKEY

TITLES = {VALKEY: "Valkey", RABBITMQ: "RabbitMQ"}


def write(results: Results, directory: Path) -> None:
    """Write `results.md` into a directory that has, or will have, the pictures."""
    (directory / "results.md").write_text("\n".join(_lines(results)) + "\n")


def _lines(results: Results) -> Iterator[str]:
    yield "# Results"
    yield ""
    yield "Made by `make bench`; what each figure means is in the [README](README.md)."
    yield ""
    yield from _about(results)
    if results.about["options"]["quick"]:
        yield ""
        yield "**A quick run: one round, small counts. Not to be quoted.**"
    yield from _table("Must show", ("work, on Valkey", "aim", "measured", ""), rows(results))
    for broker in results.about["options"]["brokers"]:
        title = TITLES[broker]
        yield from _table(f"Drain on {title}", _DRAIN, _drain(results, broker))
        yield from _table(f"Send on {title}", _SEND, _send(results, broker))
        yield from _table(f"Idle round trip on {title}", _IDLE, _idle(results, broker))
        yield from _table(f"Memory on {title}", _MEMORY, _memory(results, broker))
        yield from _backlog(results, broker)
        yield from _table(f"Events on {title}", _EVENTS, _events(results, broker))
    yield from _table("Safety", _SAFETY, _safety(results))
    if results.failures:
        yield from ["", "## Not measured", "", *(f"- {line}" for line in results.failures)]


def _about(results: Results) -> Iterator[str]:
    about = results.about
    versions = {
        f"{package} {number}"
        for system in results.systems.values()
        for package, number in system["versions"].items()
    }
    options = ", ".join(f"{name} {value}" for name, value in about["options"].items())
    yield f"- {about['date']}"
    yield f"- {about['machine']}"
    yield f"- {', '.join(about['servers'])}"
    yield f"- {', '.join(sorted(versions))}"
    yield f"- options: {options}"


def _table(title: str, head: Sequence[str], lines: Sequence[Sequence[str]]) -> Iterator[str]:
    if lines:
        yield from ["", f"## {title}", ""]
        yield f"| {' | '.join(head)} |"
        yield "|---" * len(head) + "|"
        yield from (f"| {' | '.join(line)} |" for line in lines)


def _pools(results: Results, broker: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, system in results.systems.items():
        for pool in results.pools(name, broker):
            yield name, pool.name, system


_DRAIN = ("system", "workers", "jobs/s", "× Celery", "safety", "lost", "ran again")


def _drain(results: Results, broker: str) -> list[list[str]]:
    celery = results.spread("drain", broker, "celery", "prefork -c 2")
    lines = []
    for name, pool, system in _pools(results, broker):
        where = (broker, name, pool)
        drain, lost, again = (
            results.spread(measure, *where) for measure in ("drain", "lost", "again")
        )
        if lost:
            line = [system["title"], pool, _rate(drain), ratio(drain, celery), system["safety"]]
            median = drain.median if drain else 0.0
            lines.append((median, [*line, _most(lost), _most(again)]))
    return [line for _, line in sorted(lines, key=lambda entry: -entry[0])]


_SEND = ("system", "`send`/s", "× Celery", "many/s", "× Celery's loop")


def _send(results: Results, broker: str) -> list[list[str]]:
    celery = results.spread("send", broker, "celery", "prefork -c 2")
    lines = []
    for name, system in results.systems.items():
        first = next(iter(results.pools(name, broker)), None)
        if not first:
            continue
        one, many, group = (
            results.spread(measure, broker, name, first.name)
            for measure in ("send", "send_many", "send_group")
        )
        line = [system["title"], _rate(one), ratio(one, celery), _rate(many), ratio(many, celery)]
        lines.append(line)
        if group:
            line = [f"{system['title']}, group", "", "", _rate(group), ratio(group, celery)]
            lines.append(line)
    return lines


_IDLE = ("system", "workers", "p50 ms", "p99 ms")


def _idle(results: Results, broker: str) -> list[list[str]]:
    lines = []
    for name, pool, system in _pools(results, broker):
        half, most = (results.spread(which, broker, name, pool) for which in ("p50_ms", "p99_ms"))
        if half and most:
            lines.append([system["title"], pool, _ms(half), _ms(most)])
    return lines


_MEMORY = ("system", "workers", "PSS MiB", "RSS MiB", "processes", "bytes per waiting message")


def _memory(results: Results, broker: str) -> list[list[str]]:
    lines = []
    shown = set()
    for name, pool, system in _pools(results, broker):
        measures = ("pss_mib", "rss_mib", "processes", "message_bytes")
        values = [results.spread(measure, broker, name, pool) for measure in measures]
        if name in shown:
            values[-1] = None  # the message is the same for every pool
        if values[0]:
            shown.add(name)
            numbers = [f"{value.median:,.0f}" if value else "–" for value in values]
            lines.append([system["title"], pool, *numbers])
    return lines


def _backlog(results: Results, broker: str) -> Iterator[str]:
    sizes = sorted({entry["waiting"] for entry in results.samples if entry["waiting"]})
    for measure, what in (("send_us", "send one"), ("drain_us", "get one done")):
        lines = []
        for name, system in results.systems.items():
            pool = next((pool.name for pool in results.pools(name, broker)), "")
            spreads = [results.spread(measure, broker, name, pool, size) for size in sizes]
            known = [spread for spread in spreads if spread]
            if known:
                cells = [f"{spread.median:,.0f}" if spread else "–" for spread in spreads]
                lines.append([system["title"], *cells, ratio(known[-1], known[0])])
        title = f"Microseconds to {what}, by messages waiting on {TITLES[broker]}"
        head = ("system", *(f"{size:,}" for size in sizes), "most ÷ least")
        yield from _table(title, head, lines)


_EVENTS = ("subscribers", "µs to publish one", "for each copy", "µs to get a copy handled")


def _events(results: Results, broker: str) -> list[list[str]]:
    sizes = sorted({entry.get("subscribers") or 0 for entry in results.samples} - {0})
    lines = []
    for size in sizes:
        publish, handle = (
            results.of_events(measure, broker, size) for measure in ("publish_us", "handle_us")
        )
        if publish and handle:
            each = f"{publish.median / size:,.0f}"
            lines.append([str(size), _rate(publish), each, _rate(handle)])
    return lines


_SAFETY = ("system", "safety", "because", "where it says so")


def _safety(results: Results) -> list[list[str]]:
    return [
        [system["title"], system["safety"], system["because"], f"[source]({system['source']})"]
        for system in results.systems.values()
    ]


def ratio(one: Spread | None, other: Spread | None) -> str:
    """Of two medians."""
    return f"{one.median / other.median:.2f}" if one and other else "–"


def _rate(spread: Spread | None) -> str:
    if not spread:
        return "–"
    around = f" ({spread.low:,.0f}–{spread.high:,.0f})" if spread.low < spread.high else ""
    return f"{spread.median:,.0f}{around}"


def _ms(spread: Spread) -> str:
    around = f" ({spread.low:.2f}–{spread.high:.2f})" if spread.low < spread.high else ""
    return f"{spread.median:.2f}{around}"


def _most(spread: Spread | None) -> str:
    return f"{spread.high:,.0f}" if spread else "–"

"""The table of promise and broker in docs/conformance.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from conformance.stages import BROKERS

BEGIN, END = "<!-- promises: begin -->", "<!-- promises: end -->"


class Row(NamedTuple):
    """What came of a promise on a broker.

    Attributes:
        section: of the design.
        promise: in one sentence.
        broker: one of `BROKERS`.
        outcome: of the test.
        why: it is not there, in the framework's own words; or what is known of it.
    """

    section: str
    promise: str
    broker: str
    outcome: str
    why: str


def write(rows: Iterable[Row], page: Path) -> None:
    """Put the table between the marks of the page."""
    put(page, BEGIN, END, table(rows))


def put(page: Path, begin: str, end: str, lines: Iterable[str]) -> None:
    """Replace what is between two marks."""
    made = "\n".join([begin, "", *lines, "", end])
    text = page.read_text()
    assert begin in text, f"{page} lacks the line {begin}"
    page.write_text(re.sub(f"{begin}.*{end}", lambda _: made, text, flags=re.DOTALL))


def table(rows: Iterable[Row]) -> Iterator[str]:
    """Lines of Markdown, by section and in the order of the tests."""
    cells: dict[tuple[str, str], dict[str, str]] = {}
    reasons: list[str] = []
    for row in rows:
        cells.setdefault((row.section, row.promise), {})[row.broker] = _cell(row, reasons)
    yield f"| promise | {' | '.join(BROKERS)} |"
    yield "|---" * (len(BROKERS) + 1) + "|"
    section = None
    for (number, promise), by_broker in sorted(cells.items(), key=lambda item: item[0][0]):
        if number != section:
            section = number
            yield f"| **{section}** |" + " |" * len(BROKERS)
        yield f"| {promise} | {' | '.join(by_broker.get(one, 'not run') for one in BROKERS)} |"
    if reasons:
        yield ""
        yield from (f"{number}. {reason}" for number, reason in enumerate(reasons, 1))


def _cell(row: Row, reasons: list[str]) -> str:
    if row.outcome == "passed" and not row.why:
        return "kept"
    if row.why and row.why not in reasons:
        reasons.append(row.why)
    note = f" ({reasons.index(row.why) + 1})" if row.why else ""
    return ("not there" if row.outcome == "passed" else "broken") + note

"""``celery -A app deadletters list | show | replay | discard``."""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from functools import reduce
from typing import Any

import click
from celery.utils.time import rate as per_second

from umbel.cli.common import app_of, errors_shown
from umbel.consumers.deadletters import DeadLetter, Kind, Reason
from umbel.consumers.replay import Replayed

_SPAN = re.compile(r"(\d+)\s*([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Moment(click.ParamType[datetime]):
    """A time: ISO 8601 (UTC unless it says otherwise), or how long ago."""

    name = "time"

    def convert(self, value: Any, param: Any, ctx: Any) -> datetime:
        """Called by click with what was typed."""
        if isinstance(value, datetime):
            return value
        if span := _SPAN.fullmatch(value):
            return datetime.now(UTC) - timedelta(**{_UNITS[span[2]]: int(span[1])})
        try:
            time = datetime.fromisoformat(value)
        except ValueError:
            self.fail(
                f"{value!r} is no time; expected 2026-07-30, 2026-07-30T14:00, 90s, 30m, 2h, 3d or "
                "1w (ago)"
            )
        return time if time.tzinfo else time.replace(tzinfo=UTC)


class Rate(click.ParamType[float]):
    """Messages in a time, as Celery's rate limits are written; per second."""

    name = "rate"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Called by click with what was typed."""
        if isinstance(value, float):
            return value
        if not re.fullmatch(r"\d+(\.\d+)?(/[smh])?", value) or not per_second(value):
            self.fail(f"{value!r} is no rate; expected 50/s, 100/m or 20/h")
        return float(per_second(value))


_FILTERS = (
    click.option(
        "--kind",
        type=click.Choice([kind.value for kind in Kind]),
        help="Dead letters, or what was never run.",
    ),
    click.option("--reason", type=click.Choice([reason.value for reason in Reason]), help="Why."),
    click.option("--job", help="The job's name."),
    click.option("--queue", help="Where it waited."),
    click.option("--since", type=Moment(), help="Died then or later: 2h, 3d or 2026-07-30T14:00."),
    click.option("--until", type=Moment(), help="Died then or before."),
)


def _choosing(command: Callable[..., None]) -> Callable[..., None]:
    """Ids and filters, the same for all commands."""
    options = (click.argument("ids", nargs=-1, metavar="[ID]..."), *_FILTERS)
    return reduce(lambda inner, option: option(inner), reversed(options), command)


_limit = click.option("--limit", type=click.IntRange(min=1), help="At most so many, the oldest.")
_all = click.option("--all", "all_", is_flag=True, help="All that there are.")


@click.group()
def deadletters() -> None:
    """Messages that were not done: dead letters and quarantine."""


@deadletters.command("list")
@_choosing
@click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1))
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="json: one object a line, without bodies.",
)
@click.option("--json", "format_", flag_value="json", hidden=True)
@click.pass_context
def list_(
    context: click.Context, /, ids: tuple[str, ...], limit: int, format_: str, **which: Any
) -> None:
    """List them, the newest first."""
    with errors_shown():
        office = app_of(context).dead_letters
        letters = list(office.find(*ids, limit=limit, **which))
        if format_ == "json":
            for letter in letters:
                click.echo(letter.model_dump_json(exclude={"body", "headers", "properties"}))
            return
        if not letters:
            click.echo("no dead letters")
            return
        for line in _table(letters):
            click.echo(line)
        size = office.size()
        click.echo(f"{len(letters)} of {size.letters} ({_readable(size.bytes)})", nl=False)
        click.echo(f"; {size.dropped} were dropped by the bounds" if size.dropped else "")


@deadletters.command()
@click.argument("letter_id", metavar="ID")
@click.option("--raw", is_flag=True, help="Only the body's bytes, to standard output.")
@click.pass_context
def show(context: click.Context, letter_id: str, raw: bool) -> None:
    """Show one, by its id or its job's id."""
    with errors_shown():
        letter = app_of(context).dead_letters.get(letter_id)
    if raw:
        sys.stdout.buffer.write(letter.body)
        return
    for name, value in _facts(letter).items():
        if value:
            click.echo(f"{click.style(name, bold=True)}: {_line(value)}")
    click.echo()
    for line in (letter.traceback or letter.error).splitlines():
        click.echo(_line(line))


@deadletters.command()
@_choosing
@_limit
@_all
@click.option("--dry-run", is_flag=True, help="Say what would happen; change nothing.")
@click.option("--rate", type=Rate(), help="Most messages in a time: 50/s, 100/m.")
@click.option("--to", metavar="QUEUE", help="To this queue, not to the one it came from.")
@click.option(
    "--raw", is_flag=True, help="The bytes as they came, unchecked: for what cannot be decoded."
)
@click.pass_context
def replay(
    context: click.Context,
    /,
    ids: tuple[str, ...],
    *,
    all_: bool,
    rate: float | None,
    dry_run: bool,
    to: str | None,
    raw: bool,
    **which: Any,
) -> None:
    """Send messages to their queue again, the oldest first, if they fit today's contract.

    A letter is removed once the broker has its message. What cannot go stays, with the reason, and
    the exit status is 1.
    """
    _refuse_none_chosen(ids, all_, which)
    went, counts = "would go" if dry_run else "sent", Counter[bool]()

    def tell(result: Replayed) -> None:
        counts[not result.problem] += 1
        what = _line(f"{result.job or '?'} {result.id}")
        if result.problem:
            stays = click.style("stays".ljust(max(len(went), 5)), fg="red")
            click.echo(f"{stays}  {what}: {_line(result.problem)}")
        else:
            click.echo(f"{click.style(went.ljust(5), fg='green')}  {what} -> {result.queue}")

    with errors_shown():
        try:
            app_of(context).dead_letters.replay(
                *ids, to=to, raw=raw, dry_run=dry_run, rate=rate, tell=tell, **which
            )
        finally:
            nothing = "; nothing was sent (--dry-run)" if dry_run else ""
            click.echo(f"{counts[True]} {went}, {counts[False]} stay{nothing}")
    if counts[False]:
        context.exit(1)


@deadletters.command()
@_choosing
@_limit
@_all
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def discard(
    context: click.Context, /, ids: tuple[str, ...], *, all_: bool, yes: bool, **which: Any
) -> None:
    """Drop letters for good; asks before it drops more than one."""
    _refuse_none_chosen(ids, all_, which)
    with errors_shown():
        office = app_of(context).dead_letters
        count, last = 0, None
        for letter in office.find(*ids, oldest_first=True, **which):
            count, last = count + 1, letter.died_at
        if count == 0:
            click.echo("no dead letters")
            return
        if count > 1 and not yes:
            click.confirm(f"Drop {count} messages for good?", abort=True)
        # Not what has come since it was counted.
        gone = office.discard(*ids, **which | {"until": last})
        click.echo(f"{gone} dropped")


def _refuse_none_chosen(ids: tuple[str, ...], all_: bool, which: dict[str, Any]) -> None:
    if not (ids or all_ or any(value is not None for value in which.values())):
        raise click.UsageError("which? Give ids, or filters such as --job, or else --all.")


def _table(letters: list[DeadLetter]) -> Iterator[str]:
    """Three lines each, whatever the terminal's width, so that ids can be copied."""
    rows = [("died (UTC)", "job", "reason", "queue", "runs")]
    for letter in letters:
        died, runs = f"{letter.died_at:%Y-%m-%d %H:%M:%S}", str(letter.attempts)
        kind = "quarantine: " if letter.kind is Kind.QUARANTINE else ""
        rows.append((died, letter.job or "?", kind + letter.reason, letter.queue or "?", runs))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    heading, *lines = (
        _line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))
        for row in rows
    )
    yield click.style(heading, bold=True)
    for line, letter in zip(lines, letters, strict=True):
        yield line
        yield f"    {_line(letter.error)}"
        yield f"    {click.style(_line(letter.id), fg='cyan')}"


def _line(text: str) -> str:
    """What may be a stranger's, on one line, and nothing in it that a terminal obeys."""
    return "".join(char if char.isprintable() else " " for char in text).rstrip()


def _readable(size_bytes: int) -> str:
    if size_bytes < 1024**2:
        return f"{size_bytes / 1024:.1f} KiB"
    return f"{size_bytes / 1024**2:.1f} MiB"


def _facts(letter: DeadLetter) -> dict[str, str]:
    # The body may hold secrets; what may be shown of it is `shown`.
    return {
        "id": letter.id,
        "kind": f"{letter.kind.value} ({letter.reason.value})",
        "job": letter.job,
        "job id": letter.job_id,
        "queue": letter.queue,
        "attempts": str(letter.attempts),
        "sent": letter.produced_at or "",
        "died": letter.died_at.isoformat(),
        "message": letter.shown,
        "body": f"{len(letter.body)} bytes of {letter.content_type or 'unknown type'} (--raw)",
    }

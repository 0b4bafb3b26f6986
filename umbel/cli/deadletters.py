"""``celery -A app deadletters list | show``."""

from __future__ import annotations

import sys

import click
from rich.console import Console
from rich.table import Table

from umbel.app import Umbel
from umbel.config.errors import UmbelError
from umbel.consumers.deadletters import DeadLetter, DeadLetters, Kind


@click.group()
def deadletters() -> None:
    """Messages that were not done: dead letters and quarantine."""


@deadletters.command("list")
@click.option("--kind", type=click.Choice([kind.value for kind in Kind]), help="Only this kind.")
@click.option("--queue", help="Only from this queue.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line, without bodies.")
@click.pass_context
def list_(
    context: click.Context, kind: str | None, queue: str | None, limit: int, as_json: bool
) -> None:
    """List them, the newest first."""
    letters = list(_letters(context).newest(limit, Kind(kind) if kind else None, queue))
    if as_json:
        for letter in letters:
            click.echo(letter.model_dump_json(exclude={"body", "headers", "properties"}))
        return
    if not letters:
        click.echo("no dead letters")
        return
    Console().print(_table(letters))


@deadletters.command()
@click.argument("letter_id")
@click.option("--raw", is_flag=True, help="Only the body's bytes, to standard output.")
@click.pass_context
def show(context: click.Context, letter_id: str, raw: bool) -> None:
    """Show one, by its id or its job's id."""
    try:
        letter = _letters(context).get(letter_id)
    except UmbelError as error:
        raise click.ClickException(str(error)) from error
    if raw:
        sys.stdout.buffer.write(letter.body)
        return
    for name, value in _facts(letter).items():
        if value:
            click.echo(f"{click.style(name, bold=True)}: {value}")
    click.echo(f"\n{letter.traceback or letter.error}")


def _letters(context: click.Context) -> DeadLetters:
    app = context.obj.app
    if not isinstance(app, Umbel):
        raise click.ClickException(f"{app} is no Umbel app; expected app = Umbel(…)")
    try:
        return app.dead_letters
    except UmbelError as error:
        raise click.ClickException(str(error)) from error


def _table(letters: list[DeadLetter]) -> Table:
    table = Table()
    for heading in ("died (UTC)", "kind", "queue", "job", "attempts", "error", "id"):
        table.add_column(heading, overflow="fold")
    for letter in letters:
        table.add_row(
            f"{letter.died_at:%Y-%m-%d %H:%M:%S}",
            letter.kind.value,
            letter.queue,
            letter.job or "?",
            str(letter.attempts),
            f"[{letter.reason.value}] {letter.error}".replace("[", r"\["),
            letter.id,
        )
    return table


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

"""``celery -A app outbox create | relay | list | retry | discard``."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from threading import Event
from typing import TYPE_CHECKING, Any

import click

from umbel.app import Umbel
from umbel.cli.common import app_of, errors_shown

if TYPE_CHECKING:
    from umbel.producers.outbox import OutboxDatabase, Row

_url = click.option("--url", help="The database, in place of UMBEL_OUTBOX_URL.")
_all = click.option("--all", "all_", is_flag=True, help="All that was refused.")
_positions = click.argument("positions", nargs=-1, type=int, metavar="[POSITION]...")


@click.group()
def outbox() -> None:
    """Messages that wait in a database: the relay that sends them, and what was refused."""


@outbox.command()
@_url
@click.option("--sql", is_flag=True, help="Print the statement instead.")
@click.pass_context
def create(context: click.Context, url: str | None, sql: bool) -> None:
    """Create the table, if it is not there."""
    with _opened(context, url) as database:
        click.echo(database.ddl) if sql else database.create()


@outbox.command()
@_url
@click.option("--once", is_flag=True, help="Send what waits now, then end.")
@click.option("--batch", default=100, show_default=True, type=click.IntRange(1, 1000))
@click.option("-l", "--loglevel", default="INFO", show_default=True)
@click.pass_context
def relay(context: click.Context, url: str | None, once: bool, batch: int, loglevel: str) -> None:
    """Send what waits, in order, until SIGTERM.

    Of several relays one sends, the others stand by.
    """
    with _opened(context, url) as database:
        from umbel.producers.outbox import Relay  # noqa: PLC0415  an extra

        app = app_of(context)
        relay = Relay(app.sender, database, batch)
        if once:
            sent = relay.drain()
            click.echo("another relay is at work" if sent is None else f"{sent} sent")
            return
        app.log.setup_logging_subsystem(loglevel=loglevel)
        relay.run(_until_told())


@outbox.command("list")
@_url
@click.option("--refused", is_flag=True, help="Only what the broker refused.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1))
@click.option("--json", "as_json", is_flag=True, help="One object a line.")
@click.pass_context
def list_(
    context: click.Context, url: str | None, refused: bool, limit: int, as_json: bool
) -> None:
    """List rows in their order, without what they carry."""
    with _opened(context, url) as database:
        rows, size = database.rows(refused=refused, limit=limit), database.size()
    for row in rows:
        click.echo(json.dumps(asdict(row), default=str) if as_json else _line(row))
    if not as_json:
        oldest = f", the oldest for {size.oldest_s:.0f} s" if size.waiting else ""
        click.echo(f"{size.waiting} wait{oldest}; {size.refused} refused")


@outbox.command()
@_positions
@_all
@_url
@click.pass_context
def retry(context: click.Context, positions: tuple[int, ...], all_: bool, url: str | None) -> None:
    """Let rows that the broker refused wait again, in their old places."""
    _refuse_none_chosen(positions, all_)
    with _opened(context, url) as database:
        click.echo(f"{database.retry(positions)} wait again")


@outbox.command()
@_positions
@_all
@_url
@click.pass_context
def discard(
    context: click.Context, positions: tuple[int, ...], all_: bool, url: str | None
) -> None:
    """Drop rows that the broker refused, for good."""
    _refuse_none_chosen(positions, all_)
    with _opened(context, url) as database:
        click.echo(f"{database.discard(positions)} dropped")


def _line(row: Row) -> str:
    where = f"-> {row.queue}" if row.queue else "to its subscribers"
    error = f": {row.error}" if row.error else ""
    return f"{row.position}  {row.written_at:%Y-%m-%d %H:%M:%S}  {row.name} {row.id} {where}{error}"


def _refuse_none_chosen(positions: tuple[int, ...], all_: bool) -> None:
    if bool(positions) == all_:
        raise click.UsageError("which? positions, as `outbox list` shows them, or --all")


def _until_told() -> Event:
    """Set by the first signal; by a second the process ends as usual."""
    until = Event()

    def end(number: int, _frame: Any) -> None:
        until.set()
        signal.signal(number, signal.SIG_DFL)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, end)
    return until


@contextmanager
def _opened(context: click.Context, url: str | None) -> Iterator[OutboxDatabase]:
    """The database; what is wrong with it ends the command."""
    with errors_shown():
        database = _database(app_of(context), url)
        from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415  an extra

        try:
            yield database
        except SQLAlchemyError as error:
            hint = "Is there a table? celery -A app outbox create"
            raise click.ClickException(f"{error}\n{hint}") from error


def _database(app: Umbel, url: str | None) -> OutboxDatabase:
    if url is None:
        return app.outbox_database
    from umbel.producers.outbox import OutboxDatabase  # noqa: PLC0415  likewise

    return OutboxDatabase(url, app.settings.outbox_table, app.settings.publish_timeout_s)

"""``celery -A app webhooks list | show``."""

from __future__ import annotations

from itertools import islice

import click

from umbel.cli.common import app_of, errors_shown
from umbel.consumers.webhook_log import Attempt

_json = click.option("--json", "json", is_flag=True, help="One object a line.")


@click.group()
def webhooks() -> None:
    """Callbacks to URLs: what was tried, and what came of it."""


@webhooks.command("list")
@click.option("--failed", is_flag=True, help="Only attempts after which it was not delivered.")
@click.option("--limit", default=50, show_default=True, type=click.IntRange(min=1))
@_json
@click.pass_context
def list_(context: click.Context, failed: bool, limit: int, json: bool) -> None:
    """List attempts, the newest first."""
    _print(context, None, failed, limit, json)


@webhooks.command()
@click.argument("id")
@_json
@click.pass_context
def show(context: click.Context, id: str, json: bool) -> None:
    """Show all attempts of a callback, by its id or by that of the job that it tells of."""
    _print(context, id, False, None, json)


def _print(
    context: click.Context, id: str | None, failed: bool, limit: int | None, json: bool
) -> None:
    with errors_shown():
        found = list(islice(app_of(context).webhook_log.find(id, failed=failed), limit))
    for attempt in found:
        click.echo(attempt.model_dump_json() if json else _line(attempt))
    if not found and not json:
        click.echo("no attempts")


def _line(attempt: Attempt) -> str:
    came = attempt.error or f"answered {attempt.status}"
    return (
        f"{attempt.at:%Y-%m-%d %H:%M:%S}  {attempt.webhook_id}  {attempt.type} of "
        f"{attempt.job} {attempt.job_id}\n"
        f"  attempt {attempt.attempt} at {attempt.url}: {came} ({attempt.duration_s:.2f} s)"
    )

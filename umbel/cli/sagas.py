"""``celery -A app sagas list | show | resume | cancel``."""

from __future__ import annotations

from typing import Any

import click

from umbel.cli.common import app_of, errors_shown
from umbel.config.errors import UnknownJob
from umbel.jobs.saga_handle import SagaHandle
from umbel.jobs.saga_state import SagaRecord, SagaState

_SECRET: dict[str, Any] = {"message": True, "steps": {"__all__": {"result"}}}
"""What may hold secrets: messages and results."""

_key = click.argument("key", metavar="NAME/ID")
_json = click.option("--json", "json", is_flag=True, help="One object a line.")


@click.group()
def sagas() -> None:
    """Sagas: where each is, and what to do about one that is stuck."""


@sagas.command("list")
@click.option("--state", type=click.Choice([state.value for state in SagaState]))
@click.option("--name", help="Of one name only.")
@_json
@click.pass_context
def list_(context: click.Context, state: str | None, name: str | None, json: bool) -> None:
    """List them, the one that moved last first."""
    with errors_shown():
        found = [
            record
            for record in app_of(context).saga_records.find(name or "*")
            if state in {None, record.state}
        ]
    for record in sorted(found, key=lambda record: record.updated_at, reverse=True):
        click.echo(record.model_dump_json(exclude=_SECRET) if json else _line(record))
    if not found and not json:
        click.echo("no sagas")


@sagas.command()
@_key
@_json
@click.pass_context
def show(context: click.Context, key: str, json: bool) -> None:
    """Show one with its steps."""
    with errors_shown():
        record = _handle(context, key).record()
    if json:
        click.echo(record.model_dump_json(exclude=_SECRET))
        return
    click.echo(_line(record))
    for step in record.steps:
        click.echo(f"  {step.state:<9}  {step.name}  {step.error or ''}".rstrip())
        click.echo(f"             job {step.job_id}, runs: {step.attempts}")
        if step.undo_id:
            click.echo(f"             undo {step.undo_id}, runs: {step.undo_attempts}")


@sagas.command()
@_key
@click.pass_context
def resume(context: click.Context, key: str) -> None:
    """Send the compensation once more at which a saga is stuck."""
    with errors_shown():
        click.echo(_handle(context, key).resume().value)


@sagas.command()
@_key
@click.pass_context
def cancel(context: click.Context, key: str) -> None:
    """Undo a saga that runs, once its step has ended."""
    with errors_shown():
        click.echo(_handle(context, key).cancel().value)


def _line(record: SagaRecord) -> str:
    when = f"{record.updated_at:%Y-%m-%d %H:%M:%S}"
    return f"{when}  {record.state:<9}  {record.name}/{record.id}  {record.why}".rstrip()


def _handle(context: click.Context, key: str) -> SagaHandle[Any]:
    name, _, saga_id = key.partition("/")
    known = app_of(context).sagas
    if name not in known:
        there = ", ".join(sorted(known)) or "none"
        raise UnknownJob(f"no saga {name!r} in this app (expected NAME/ID); there are: {there}")
    return known[name].handle(saga_id)

"""``celery -A app contracts list | export | lock | check``."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
from pydantic_core import to_json

from umbel.app import Umbel
from umbel.cli.common import app_of, errors_shown
from umbel.consumers.waiting import Look, look
from umbel.jobs.asyncapi import asyncapi
from umbel.jobs.evolution import Break, Breaks, compare, renewed
from umbel.jobs.lockfile import LockFile, default_path
from umbel.jobs.schemas import Contract, Kind, bundle, contracts_of, json_schema, unmatched_patterns
from umbel.jobs.xsd import xsd_of

Documents = dict[str, str]
"""Texts by the names of their files; the whole in one under the name of the format."""


def _json(document: Any) -> str:
    return to_json(document, indent=2).decode() + "\n"


def _jsonschema(app: Umbel) -> tuple[str, Documents]:
    contracts = contracts_of(app)
    each = {f"{one.key}.json": _json(json_schema(one)) for one in contracts}
    return _json(bundle(contracts)), each


def _asyncapi(app: Umbel) -> tuple[str, Documents]:
    whole = _json(asyncapi(app))
    return whole, {"asyncapi.json": whole}


def _xsd(app: Umbel) -> tuple[str, Documents]:
    each = {
        f"{one.key}.xsd": xsd_of(one.type)
        for one in contracts_of(app)
        if one.kind in {Kind.MESSAGE, Kind.EVENT}
    }
    return "".join(each.values()), each


FORMATS: dict[str, Callable[[Umbel], tuple[str, Documents]]] = {
    "jsonschema": _jsonschema,
    "asyncapi": _asyncapi,
    "xsd": _xsd,
}
"""What each gives: one document, and files for a directory."""

_file = click.Path(dir_okay=False, path_type=Path)
_allow_removed = click.option(
    "--allow-removed", is_flag=True, help="What nothing reads any more is no mistake."
)


@click.group()
def contracts() -> None:
    """The contracts: what this app takes, and whether a change breaks anybody."""


@contracts.command("list")
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="json: one object a line.",
)
@click.pass_context
def list_(context: click.Context, format_: str) -> None:
    """List them with their versions and who consumes them."""
    with errors_shown():
        found = contracts_of(app_of(context))
    if format_ == "json":
        for one in found:
            click.echo(to_json(_facts(one)).decode())
        return
    for line in _table(found):
        click.echo(line)


@contracts.command()
@click.option("--format", "format_", type=click.Choice(list(FORMATS)), default="jsonschema")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    help="A file (NAME.json), or a directory: a file for each contract. By default it is printed.",
)
@click.pass_context
def export(context: click.Context, format_: str, out: Path | None) -> None:
    """Write their schemas: JSON Schema 2020-12, AsyncAPI 3.0, or XML Schema 1.0."""
    is_file = out is not None and bool(out.suffix) and not out.is_dir()
    if is_file and format_ == "xsd":
        raise click.UsageError("an XML Schema has one contract: give --out a directory")
    with errors_shown():
        whole, files = FORMATS[format_](app_of(context))
    if out is None:
        click.echo(whole, nl=False)
        return
    if is_file:
        files, out = {out.name: whole}, out.parent
    out.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (out / name).write_text(text, encoding="utf-8")
        click.echo(out / name)


@contracts.command()
@click.option("--out", "path", type=_file, help="By default contracts.lock.json of the project.")
@_allow_removed
@click.option("--force", is_flag=True, help="Also what breaks others.")
@click.pass_context
def lock(context: click.Context, path: Path | None, allow_removed: bool, force: bool) -> None:
    """Write the lock file; commit it. What breaks others is refused, as by `check`."""
    app, path = app_of(context), path or default_path()
    with errors_shown():
        before = LockFile.read(path) if path.exists() else LockFile()
        breaks = [] if force else _breaks(compare(before, app).breaks, allow_removed)
        if breaks:
            _tell(breaks)
            raise click.ClickException(f"{path} is as it was; --force writes it all the same")
        renewed(before, app).write(path)
    click.echo(path)


@contracts.command()
@click.option("--against", "path", type=_file, help="By default contracts.lock.json.")
@_allow_removed
@click.option("--locked", is_flag=True, help="Fail also when the lock file is not up to date.")
@click.option("--in-flight", is_flag=True, help="Look at what waits on the broker, too.")
@click.option(
    "--sample",
    default=100,
    show_default=True,
    type=click.IntRange(min=1),
    help="How many messages of each queue --in-flight looks at.",
)
@click.pass_context
def check(
    context: click.Context,
    path: Path | None,
    *,
    allow_removed: bool,
    locked: bool,
    in_flight: bool,
    sample: int,
) -> None:
    """Fail on what breaks others: a line for each, with what to do instead."""
    app, path = app_of(context), path or default_path()
    with errors_shown():
        comparison = compare(LockFile.read(path), app)
        breaks = _breaks(comparison.breaks, allow_removed)
        unmatched = unmatched_patterns(app)
        found = look(app, sample) if in_flight else Look()
    _tell(breaks)
    for subscriber, pattern in unmatched:
        click.echo(
            f"subscriber {subscriber}: {pattern!r} matches no event that it knows: correct it, or "
            "import the event's class where the subscriber is declared"
        )
    for one in comparison.unlocked:
        click.echo(f"not in the lock file yet: {one}: run `contracts lock`, commit it")
    _tell_waiting(found)
    stale = bool(locked and comparison.unlocked)
    if breaks or unmatched or found.failing or stale:
        context.exit(1)
    click.echo(f"nothing breaks; compared with {path}")


def _breaks(found: Iterable[Break], allow_removed: bool) -> list[Break]:
    return [one for one in found if not (allow_removed and one.how is Breaks.REMOVED)]


def _tell(breaks: Iterable[Break]) -> None:
    for one in breaks:
        click.echo(one)


def _tell_waiting(found: Look) -> None:
    for sample in found.samples:
        version = f" {sample.version}" if sample.version else ""
        what = f"{sample.place}: {_line(sample.contract)}{version}"
        click.echo(f"{what}: {sample.failing} of {sample.looked_at} would fail")
        for reason in sample.reasons:
            click.echo(f"    {_line(reason)}")
    for note in found.notes:
        click.echo(note)


def _line(text: str) -> str:
    """What may be a stranger's, with nothing in it that a terminal obeys."""
    return "".join(char if char.isprintable() else " " for char in text)


def _facts(contract: Contract) -> dict[str, Any]:
    return {
        "name": contract.name,
        "version": contract.version,
        "kind": contract.kind.value,
        "aliases": contract.aliases,
        "newest": contract.newest,
        "consumers": [{"job": by.job, "queue": by.queue} for by in contract.consumers],
    }


def _table(found: list[Contract]) -> Iterable[str]:
    rows = [("contract", "version", "kind", "aliases", "job (queue)")]
    for one in found:
        version = "" if one.version is None else f"{one.version}{'' if one.newest else ' (old)'}"
        takers = ", ".join(f"{by.job} ({by.queue})" for by in one.consumers)
        rows.append((one.name, version, one.kind.value, ", ".join(one.aliases), takers))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()

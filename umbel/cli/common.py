"""What every sub-command of ours needs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import click

from umbel.app import Umbel
from umbel.config.errors import UmbelError


def app_of(context: click.Context) -> Umbel:
    """The app that ``celery -A`` named."""
    app = context.obj.app
    if not isinstance(app, Umbel):
        raise click.ClickException(f"{app} is no Umbel app; expected app = Umbel(…)")
    return app


@contextmanager
def errors_shown() -> Iterator[None]:
    """Our errors in one line and with exit status 1; others are faults, with their traceback."""
    try:
        yield
    except UmbelError as error:
        raise click.ClickException(str(error)) from error

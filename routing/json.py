"""Kombu's JSON, read and in part written by Pydantic's core, which takes a fraction of the time."""

from __future__ import annotations

from typing import Any

from kombu import serialization
from kombu.utils import json
from pydantic_core import PydanticSerializationError, from_json, to_json


def loads(text: str | bytes) -> Any:
    """What Kombu's `loads` makes of it.

    Raises:
        ValueError: it is no JSON.
        RecursionError: it is too deep.
    """
    try:
        marked = ("__type__" if isinstance(text, str) else b"__type__") in text  # type: ignore[operator]
        return json.loads(text) if marked else from_json(text)
    except ValueError:  # what only Python reads, such as half of a surrogate pair, or nobody
        return json.loads(text)


EVENTS = "umbel.events"
"""Celery's events as JSON: a worker writes three for each job."""


def _dumps_events(events: Any) -> bytes | str:
    """What Kombu's `dumps` makes of them; but a time in one would be text."""
    try:
        return to_json(events)
    except PydanticSerializationError:  # what only Python writes
        text: str = json.dumps(events)
        return text


serialization.register(EVENTS, _dumps_events, loads, "application/json", "utf-8")


def register() -> None:
    """Let all that Kombu and Celery read in this process be read so."""
    serialization.register("json", json.dumps, loads, "application/json", "utf-8")

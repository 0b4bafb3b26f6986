"""The outbox table: one row for a message, as it will be on the wire."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cache
from typing import Any

from kombu.utils.json import dumps
from sqlalchemy import BigInteger, Column, DateTime, Integer, MetaData, String, Table, Text
from sqlalchemy.orm import registry

from umbel.routing.drawer import Letter
from umbel.routing.json import loads


def outbox_table(metadata: MetaData, name: str = "umbel_outbox") -> Table:
    """The table, in the metadata that an application creates its tables from.

    Args:
        metadata: ``Base.metadata``, so that ``create_all`` and Alembic know it.
        name: the setting ``outbox_table``; ``schema.name`` where it is in one.
    """
    schema, _, bare = name.rpartition(".")
    return Table(
        bare,
        metadata,
        # The order of sending. It never goes back: a position that was free again could be given
        # to a new row while the relay is about to delete the old one.
        Column("position", BigInteger().with_variant(Integer(), "sqlite"), primary_key=True),
        Column("id", String(255), nullable=False),
        Column("name", String(255), nullable=False),
        Column("queue", String(255)),
        Column("headers", Text, nullable=False),
        Column("properties", Text, nullable=False),
        Column("body", Text, nullable=False),
        Column("written_at", DateTime(timezone=True), nullable=False),
        Column("error", Text),
        schema=schema or None,
        sqlite_autoincrement=True,
    )


def values(letter: Letter) -> dict[str, Any]:
    """A row's columns."""
    return {
        "id": letter.id,
        "name": letter.name,
        "queue": letter.queue,
        "headers": dumps(letter.headers),
        "properties": dumps(letter.properties),
        "body": letter.body.decode(),
        "written_at": datetime.now(UTC),
    }


def letter_of(row: Any) -> Letter:
    """The other way round.

    Raises:
        ValueError: somebody wrote what is none.
    """
    headers, properties = loads(row.headers), loads(row.properties)
    if not (isinstance(headers, dict) and isinstance(properties, dict)):
        raise ValueError("headers and properties are not JSON objects")
    return Letter(
        id=row.id,
        name=row.name,
        queue=row.queue,
        headers=headers,
        properties=properties,
        body=row.body.encode(),
    )


@cache
def mapped(name: str) -> type[Any]:
    """A class of rows, for sessions."""
    mapper = registry()
    row = type("OutboxRow", (), {})
    mapper.map_imperatively(row, outbox_table(mapper.metadata, name))
    return row

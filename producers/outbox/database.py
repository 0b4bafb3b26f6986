"""The outbox as a database: for the relay, for people, and for sends while the broker is away."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import (
    Connection,
    Engine,
    MetaData,
    NullPool,
    create_engine,
    delete,
    func,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.schema import CreateTable

from umbel.config import locks
from umbel.config.errors import SettingsError
from umbel.producers.outbox.table import outbox_table, values
from umbel.routing.drawer import Letter

# A holder whose machine is gone keeps its lock until the server notices: by default two hours.
_NOTICE_ITS_DEATH = text(
    "SELECT set_config('tcp_keepalives_idle', '10', false),"
    " set_config('tcp_keepalives_interval', '5', false),"
    " set_config('tcp_keepalives_count', '3', false)"
)
_SYNCHRONOUS = {"postgresql+asyncpg": "postgresql+psycopg", "sqlite+aiosqlite": "sqlite"}


@dataclass(frozen=True)
class Row:
    """One that waits, or that the broker refused.

    Attributes:
        position: its place.
        id: of its job or event.
        name: likewise.
        queue: where it goes; None for an event.
        written_at: when, UTC.
        error: why the broker refused it; None while it waits.
    """

    position: int
    id: str
    name: str
    queue: str | None
    written_at: datetime
    error: str | None


@dataclass(frozen=True)
class Size:
    """How much there is.

    Attributes:
        waiting: rows that the relay will send.
        refused: rows that the broker refused.
        oldest_s: for how long the oldest waits, in seconds; 0 where none does.
    """

    waiting: int
    refused: int
    oldest_s: float


class OutboxDatabase:
    """The outbox table of one database. No connection outlives its use, so forks are safe.

    Args:
        url: SQLAlchemy's; of an asynchronous driver its synchronous sibling is used.
        table: the table's name.
        timeout_s: longest time to connect, and on SQLite to wait for others, in seconds.

    Raises:
        SettingsError: it is no URL of a database that is known here.
    """

    def __init__(self, url: str | URL, table: str, timeout_s: float = 5) -> None:
        try:
            parsed = make_url(url)
            parsed = parsed.set(drivername=_SYNCHRONOUS.get(parsed.drivername, parsed.drivername))
            options = _options(parsed, timeout_s)
            self.engine: Engine = create_engine(
                parsed,
                poolclass=NullPool,
                connect_args=options,
                hide_parameters=True,  # an error would tell what a row carries
            )
        except (ArgumentError, NoSuchModuleError, ImportError) as error:
            raise SettingsError(
                f"outbox_url: {error}; expected postgresql+psycopg://host/name or "
                "sqlite:////path, and the driver installed"
            ) from error
        self.table = outbox_table(MetaData(), table)

    def create(self) -> None:
        """Create the table, if it is not there."""
        self.table.create(self.engine, checkfirst=True)

    @property
    def ddl(self) -> str:
        """What creates it."""
        return str(CreateTable(self.table).compile(self.engine)).strip() + ";"

    def add(self, letters: Sequence[Letter]) -> None:
        """Write them, in a transaction of their own."""
        with self.engine.begin() as connection:
            connection.execute(insert(self.table), [values(letter) for letter in letters])

    def is_drained(self) -> bool:
        """Whether nothing waits."""
        with self.engine.connect() as connection:
            return not self.read(connection, 1)

    def read(self, connection: Connection, most: int) -> Sequence[Any]:
        """Those that were written first."""
        waiting = select(self.table).where(self.table.c.error.is_(None))
        return connection.execute(waiting.order_by(self.table.c.position).limit(most)).all()

    def remove(self, connection: Connection, positions: Sequence[int]) -> None:
        """The broker has them."""
        connection.execute(delete(self.table).where(self.table.c.position.in_(positions)))

    def set_aside(self, connection: Connection, position: int, error: str) -> None:
        """The broker refused it."""
        this = update(self.table).where(self.table.c.position == position)
        connection.execute(this.values(error=error))

    def size(self) -> Size:
        """How much there is now."""
        column = self.table.c
        counts = select(func.count(), func.count(column.error)).select_from(self.table)
        oldest = select(func.min(column.written_at)).where(column.error.is_(None))
        with self.engine.connect() as connection:
            every, refused = connection.execute(counts).one()
            since = _utc(connection.scalar(oldest) or datetime.now(UTC))
        return Size(every - refused, refused, (datetime.now(UTC) - since).total_seconds())

    def rows(self, *, refused: bool = False, limit: int = 50) -> list[Row]:
        """In their order, without what they carry: that may be secret."""
        column = self.table.c
        names = ("position", "id", "name", "queue", "written_at", "error")
        query = select(*(column[name] for name in names)).order_by(column.position).limit(limit)
        if refused:
            query = query.where(column.error.is_not(None))
        with self.engine.connect() as connection:
            found = [dict(row) for row in connection.execute(query).mappings()]
        return [Row(**row | {"written_at": _utc(row["written_at"])}) for row in found]

    def retry(self, positions: Sequence[int] = ()) -> int:
        """Let what was refused wait again, in its old place; without positions all of it."""
        with self.engine.begin() as connection:
            again = self._refused(update(self.table), positions).values(error=None)
            return connection.execute(again).rowcount

    def discard(self, positions: Sequence[int] = ()) -> int:
        """Drop what was refused, for good; without positions all of it."""
        with self.engine.begin() as connection:
            return connection.execute(self._refused(delete(self.table), positions)).rowcount

    def _refused(self, change: Any, positions: Sequence[int]) -> Any:
        change = change.where(self.table.c.error.is_not(None))
        return change.where(self.table.c.position.in_(positions)) if positions else change

    @contextmanager
    def led(self) -> Iterator[Connection | None]:
        """A connection whose holder is the only one, or None if there is another holder.

        On PostgreSQL the lock is the connection's own (``pg_try_advisory_lock``): who has lost it
        can remove nothing either. On SQLite a file beside the database is locked.

        Raises:
            SettingsError: another kind of database.
        """
        match self.engine.dialect.name:
            case "postgresql":
                with self._autocommitted() as connection:
                    connection.execute(_NOTICE_ITS_DEATH)
                    key = {"key": _key(self.table.fullname)}
                    lock = text("SELECT pg_try_advisory_lock(:key)")
                    yield connection if connection.scalar(lock, key) else None
            case "sqlite":
                with _locked(self.engine.url.database) as alone, self._autocommitted() as one:
                    yield one if alone else None
            case other:
                raise SettingsError(f"the outbox's relay knows postgresql and sqlite, not {other}")

    @contextmanager
    def _autocommitted(self) -> Iterator[Connection]:
        """No transaction is open while the broker is spoken to: that would hold up the vacuum."""
        with self.engine.connect() as connection:
            yield connection.execution_options(isolation_level="AUTOCOMMIT")


def _options(url: URL, timeout_s: float) -> dict[str, Any]:
    """Without these a database that does not answer would hang a send for minutes."""
    if url.get_backend_name() == "sqlite":
        return {"timeout": timeout_s}
    if url.get_driver_name() in {"psycopg", "psycopg2"}:
        timeout_ms = int(timeout_s * 1000)
        return {"connect_timeout": max(2, int(timeout_s)), "tcp_user_timeout": timeout_ms}
    return {}


def _key(name: str) -> int:
    """A number for PostgreSQL's lock: signed, of 64 bits."""
    digest = hashlib.sha256(f"umbel.outbox/{name}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


@contextmanager
def _locked(database: str | None) -> Iterator[bool]:
    if database in {None, "", ":memory:"}:
        raise SettingsError("outbox_url: a database in memory is nobody else's: give it a path")
    handle = locks.open_lock(Path(f"{database}.relay"))
    try:
        yield locks.try_lock(handle, locks.fcntl.LOCK_EX)
    finally:
        os.close(handle)


def _utc(time: datetime) -> datetime:
    """SQLite forgets the zone."""
    return time if time.tzinfo else time.replace(tzinfo=UTC)

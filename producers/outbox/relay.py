"""The relay: from the outbox to the broker, in order, at least once."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from random import uniform
from threading import Event
from typing import Any

from redis.exceptions import OutOfMemoryError
from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError

from umbel.config.errors import BrokerUnavailable, MessageRefused
from umbel.jobs.outages import AWAY
from umbel.producers.outbox.database import OutboxDatabase
from umbel.producers.outbox.table import letter_of
from umbel.producers.sender import Sender

logger = logging.getLogger("umbel.outbox")

POLL_S = 0.5
"""Pause after the last row."""
STANDBY_S = 2.0
"""Pause between two looks whether another relay still leads."""
LONGEST_PAUSE_S = 15.0
"""Between two tries while the broker or the database is away."""

_FOR_A_WHILE = ("OOM", "MISCONF", "NOREPLICAS", "BUSY")  # Valkey's words
_REFUSED = (MessageRefused, ValueError)  # the latter: somebody wrote a row that cannot be read


class Relay:
    """Sends what waits, the first first; a row goes once the broker has its message.

    One at a time does so. Others may stand by, and take over when it ends or is cut off. One that
    dies between the broker's answer and the removal leaves rows that the next sends once more,
    under the same ids.

    Args:
        sender: of the app.
        database: with the outbox.
        batch: most rows of one round trip, and most that are sent once more after a death.
    """

    def __init__(self, sender: Sender, database: OutboxDatabase, batch: int = 100) -> None:
        self._sender = sender
        self._database = database
        self._batch = batch
        self._pauses = _pauses()

    def run(self, until: Event) -> None:
        """Send until told to end, through outages of the broker and of the database.

        Args:
            until: set, by a signal's handler for instance, for the end after the current batch.

        Raises:
            SettingsError: a kind of database that is not known here.
        """
        while not until.is_set():
            try:
                with self._database.led() as connection:
                    self._lead(connection, until) if connection else until.wait(STANDBY_S)
            except (SQLAlchemyError, BrokerUnavailable, *AWAY) as error:
                pause_s = next(self._pauses)
                logger.warning(
                    "the outbox waits, trying again in %.1f s: %s",
                    *(pause_s, error),
                    extra={"action": "relay_waits", "pause_s": pause_s},
                )
                until.wait(pause_s)

    def drain(self) -> int | None:
        """Send what waits now. Returns how many the broker took; None if another relay does it.

        Raises:
            BrokerUnavailable: no answer in time; what is left stays, in its order.
            sqlalchemy.exc.SQLAlchemyError: the database's.
        """
        with self._database.led() as connection:
            if connection is None:
                return None
            return sum(iter(lambda: self._send(connection), None))

    def _lead(self, connection: Connection, until: Event) -> None:
        """While the connection lasts; an outage ends it."""
        logger.info("this relay leads", extra={"action": "relay_leads"})
        while not until.is_set():
            if (self._send(connection) or 0) < self._batch:
                until.wait(POLL_S)
            self._pauses = _pauses()

    def _send(self, connection: Connection) -> int | None:
        """A batch. Returns how many the broker took; None where nothing waited."""
        rows = self._database.read(connection, self._batch)
        if not rows:
            return None
        sent = self._forward(connection, rows)
        if sent < len(rows):
            rest = self._database.read(connection, self._batch)
            sent += sum(self._forward_one(connection, row) for row in rest)
        return sent

    def _forward(self, connection: Connection, rows: Sequence[Any]) -> int:
        """Up to a refusal. What the broker took is removed, whatever came then."""
        sent = 0
        try:
            for more in self._sender.forward([letter_of(row) for row in rows]):
                sent += more
        except _REFUSED as error:
            _raise_if_full(error)
        finally:
            if sent:
                self._sent(connection, rows[:sent])
        return sent

    def _forward_one(self, connection: Connection, row: Any) -> bool:
        """One of several, of which one is not taken: it must not be in the others' way."""
        try:
            sum(self._sender.forward([letter_of(row)]))
            self._sent(connection, [row])
            return True
        except _REFUSED as error:
            _raise_if_full(error)
            self._database.set_aside(connection, row.position, str(error))
            logger.error(
                "%s %s was refused, and stays in the outbox: %s",
                *(row.name, row.id, error),
                extra={"action": "relay_refused", "job_id": row.id, "position": row.position},
            )
            return False

    def _sent(self, connection: Connection, rows: Sequence[Any]) -> None:
        self._database.remove(connection, [row.position for row in rows])
        logger.info(
            "%d messages sent, up to position %d",
            *(len(rows), rows[-1].position),
            extra={"action": "relayed", "messages": len(rows), "position": rows[-1].position},
        )


def _raise_if_full(error: Exception) -> None:
    """A server without memory or disk refuses everything for a while: that is an outage."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OutOfMemoryError) or str(cause).startswith(_FOR_A_WHILE):
            raise BrokerUnavailable(str(error)) from error
        cause = cause.__cause__


def _pauses() -> Iterator[float]:
    """Growing, and not the same for all."""
    pause_s = POLL_S
    while True:
        yield pause_s * uniform(0.8, 1.2)  # noqa: S311  no secret
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

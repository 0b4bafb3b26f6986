"""Where a send goes while the broker is away, if the app says so (``on_unavailable="outbox"``)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from sqlalchemy.exc import SQLAlchemyError

from umbel.config.errors import BrokerUnavailable
from umbel.producers.outbox.database import OutboxDatabase
from umbel.routing.drawer import Letter

logger = logging.getLogger("umbel.outbox")


class OutboxFallback:
    """Keeps what the broker does not take.

    From the first message on that was kept, all of this process go the same way until the outbox is
    drained: they stay in their order, and only the first waits for the broker in vain.

    Args:
        database: with the outbox.
    """

    def __init__(self, database: OutboxDatabase) -> None:
        self._database = database
        self._behind = False

    @property
    def in_use(self) -> bool:
        """Whether something that was sent before still waits, as far as is known."""
        if self._behind:
            try:
                self._behind = not self._database.is_drained()
            except SQLAlchemyError:
                return False  # perhaps the broker is back; it is asked
        return self._behind

    def keep(self, letters: Sequence[Letter], why: BrokerUnavailable | None) -> None:
        """Write them, in a transaction of their own.

        Raises:
            BrokerUnavailable: the database is away too; nothing was written.
        """
        try:
            self._database.add(letters)
        except SQLAlchemyError as error:
            told = str(why or "the broker was away before")
            raise BrokerUnavailable(f"{told} The outbox does not answer either: {error}") from error
        self._behind = True
        for letter in letters:
            logger.warning(
                "%s %s waits in the outbox for the broker",
                *(letter.name, letter.id),
                extra={"action": "kept_in_outbox", "job_id": letter.id, "queue": letter.queue},
            )

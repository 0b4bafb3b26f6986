"""Writing messages into the caller's transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from umbel.jobs.contracts import Event, Message
from umbel.jobs.handle import JobHandle, Receipt
from umbel.jobs.job import Job
from umbel.producers.outbox.table import mapped, values
from umbel.producers.sender import Sender
from umbel.routing.drawer import Drawer

M = TypeVar("M", bound=Message)
R = TypeVar("R")


class Session(Protocol):
    """SQLAlchemy's `Session`, `AsyncSession` or one of their registries."""

    def add(self, instance: object, /) -> None:
        """Written with the next flush."""


class Outbox:
    """Messages that are sent if, and only if, a session's transaction is committed.

        with Session(engine) as session, session.begin():
            session.add(order)
            app.outbox(session).send(pack, Pack(order=order.id))

    Args:
        sender: of the app.
        session: in whose transaction they are written; nothing is flushed or committed here.
        table: the table's name.
    """

    def __init__(self, sender: Sender, session: Session, table: str) -> None:
        self._sender = sender
        self._session = session
        self._row = mapped(table)

    def send(self, job: Job[M, Any, Any], message: M, **options: Any) -> Receipt:
        """As `Job.send`, with its options: sent once the transaction is committed.

        Times count from now: what a delay or an expiry says is written down as a moment.

        Returns:
            A receipt with the id that the job will have.

        Raises:
            ContractError: the message does not fit; nothing was written.
        """
        with self._written():
            return job.send(message, **options)

    def request(self, job: Job[M, R, Any], message: M, **options: Any) -> JobHandle[R]:
        """As ``job.request``: tracked. Until the relay has sent it the handle knows no job.

        Raises:
            ContractError: the message does not fit; nothing was written.
            StoreRequired: there is no state store.
        """
        with self._written():
            return job.request(message, **options)

    def publish(self, event: Event) -> Receipt:
        """As `Umbel.publish`.

        Raises:
            ContractError: the event does not fit; nothing was written.
        """
        with self._written():
            return self._sender.publish(event)

    @contextmanager
    def _written(self) -> Iterator[None]:
        """A row for what is sent in here."""
        with self._sender.into(Drawer()) as drawer:
            yield
        for letter in drawer.letters:
            row = self._row()
            for column, value in values(letter).items():
                setattr(row, column, value)
            self._session.add(row)

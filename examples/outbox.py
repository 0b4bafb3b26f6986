"""An order and its message in one transaction: both are there, or neither.

python examples/outbox.py

Starts a worker and a relay of its own, on the embedded broker and a SQLite beside this file.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from umbel import Message, Umbel
from umbel.producers.outbox import outbox_table

HERE = Path(__file__).parent
URL = f"sqlite:///{HERE / 'bikes.db'}"
app = Umbel("bikes", outbox_url=URL)


class Base(DeclarativeBase):
    """Of the application's tables; the outbox is one of them."""


outbox_table(Base.metadata)


class Order(Base):
    """A business row."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    article: Mapped[str]


class Pack(Message, name="bikes.pack", version=1):
    """Put an order into its box."""

    order: int
    article: str


@app.job
def pack(message: Pack) -> str:
    """Its result goes back to whoever asks."""
    return f"{message.article} is packed"


def place(session: Session, article: str, euros: int) -> str:
    """Write the order and its message; returns the job's id."""
    order = Order(article=article)
    session.add(order)
    session.flush()
    job_id = app.outbox(session).request(pack, Pack(order=order.id, article=article)).id
    if euros < 0:
        raise ValueError(f"{article} costs {euros} euros?")
    return job_id


def main() -> None:
    """One order that is committed, and one that is rolled back with its message."""
    engine = create_engine(URL)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        job_id = place(session, "bike", 700)
    try:
        with Session(engine) as session, session.begin():
            place(session, "tandem", -1)
    except ValueError as error:
        print(f"rolled back: {error}")
    print(f"{app.outbox_database.size().waiting} message waits")

    commands = ["worker", "-c", "1", "-l", "WARNING"], ["outbox", "relay", "-l", "WARNING"]
    celery = [sys.executable, "-m", "celery", "-A", "outbox"]
    processes = [subprocess.Popen([*celery, *command], cwd=HERE) for command in commands]
    try:
        while app.outbox_database.size().waiting:
            time.sleep(0.1)
        print(pack.handle(job_id).result(60))
    finally:
        for process in processes:
            process.terminate()
            process.wait()


if __name__ == "__main__":
    main()

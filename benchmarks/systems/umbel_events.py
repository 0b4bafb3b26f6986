"""An event for a number of Umbel's subscribers, each with a queue of its own."""

from __future__ import annotations

import os
from typing import Any

from benchmarks.work import SUBSCRIBERS, broker_url, record, store_url
from umbel import Event, Umbel

app = Umbel("bench", broker=broker_url(), store_url=store_url())


class Pictured(Event, name="bench.pictured", version=1):
    name: str
    number: int
    widths: list[int]


def handle(event: Pictured) -> None:
    record(event.number)


for number in range(int(os.environ[SUBSCRIBERS])):
    app.subscribe(Pictured, name=f"subscriber-{number}")(handle)


async def connect() -> None:
    """A queue gets events from its declaration on, which a worker would make."""
    with app.connection_for_write() as connection:
        for queue in app.amqp.queues.values():
            queue(connection.default_channel).declare()


def send(message: dict[str, Any]) -> None:
    app.publish(Pictured(**message))

"""Broadcast: each worker that is up gets each event; nothing is kept for those that are not."""

from __future__ import annotations

from collections import Counter

import pytest
from support.process import eventually
from support.servers import RabbitMQ

from umbel.routing import topology

pytestmark = pytest.mark.brokers("valkey", "rabbitmq")

APP = """
import os
from pathlib import Path
from umbel import Event, JobContext, Retry, Umbel

app = Umbel("shop", lease_s=2)
MARKS = Path(__file__).parent / "marks"

class Changed(Event, name="shop.changed", version=1):
    number: int

def mark(*what):
    with MARKS.open("a") as file:
        file.write(" ".join(map(str, what)) + "\\n")

@app.subscribe(Changed, broadcast=True, retry=Retry(delays_s=[0.3]))
def reload(event: Changed, context: JobContext) -> None:
    mark(app._instance, event.number, context.attempt, context.job_id)
    if event.number == 7 and context.attempt == 1:
        raise ValueError("not yet")

@app.subscribe(Changed)
def book(event: Changed) -> None:
    mark("book", event.number)
"""


@pytest.fixture
def shop(write_app):
    """An app with a subscriber of each kind."""
    return write_app(APP)


def marks(shop) -> list[list[str]]:
    """What was noted, in words."""
    text = shop.MARKS.read_text() if shop.MARKS.exists() else ""
    return [line.split() for line in text.splitlines()]


def got(shop, number: int) -> Counter[str]:
    """Who had an event, and how often."""
    return Counter(who for who, event, *_ in marks(shop) if event == str(number))


def queues(shop, broker) -> list[str]:
    """The broadcast queues that are there."""
    if isinstance(broker, RabbitMQ):
        listing = f"queues/{broker.vhost}?disable_stats=true&enable_queue_totals=true"
        names = [facts["name"] for facts in broker.api("GET", listing)]
    else:
        with shop.app.connection_for_read() as connection:
            names = [queue for *_, queue in connection.default_channel.get_table("shop.topics")]
    return [name for name in names if name.startswith("shop.reload.")]


def test_each_worker_that_is_up_gets_each_event(shop, start_worker):
    """Once, by one of its processes; a retry stays with its worker; others share as ever."""
    start_worker(shop, concurrency=2)
    second = start_worker(shop, queues=["shop.reload"], pool="threads")
    assert "events wait for another worker, this one does not consume: shop.book" in second.logs()
    for number in range(8):
        shop.app.publish(shop.Changed(number=number))
    eventually(lambda: len(marks(shop)) == 26, 30)
    workers = got(shop, 0).keys() - {"book"}
    assert len(workers) == 2
    once = Counter(["book", *workers])
    assert all(got(shop, number) == once for number in range(7))
    assert got(shop, 7) == once + Counter(workers)
    assert len({ids[3] for ids in marks(shop) if len(ids) > 3}) == 16


def test_nothing_is_kept_for_who_is_not_there(shop, broker, start_worker):
    """Neither for a worker that ended nor for one that was killed, and their queues go."""
    first = start_worker(shop, queues=["shop.reload"])
    shop.app.publish(shop.Changed(number=1))
    eventually(lambda: sum(got(shop, 1).values()) == 1)
    first.stop()
    shop.app.publish(shop.Changed(number=2))
    second = start_worker(shop, queues=["shop.reload"])
    shop.app.publish(shop.Changed(number=3))
    eventually(lambda: sum(got(shop, 3).values()) == 1)
    assert not got(shop, 2)
    assert "shop.book" in topology.declare(shop.app)
    assert not any("shop.reload" in finding.subject for finding in topology.check(shop.app))
    second.kill()
    start_worker(shop, queues=["shop.reload"])
    shop.app.publish(shop.Changed(number=4))
    eventually(lambda: sum(got(shop, 4).values()) == 1)
    eventually(lambda: len(queues(shop, broker)) == 1, 40)

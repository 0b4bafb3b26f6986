"""RabbitMQ: short jobs are read ahead, and a long one holds nothing that was."""

from __future__ import annotations

from collections import Counter
from time import monotonic
from types import ModuleType
from typing import Any

import pytest
from kombu.asynchronous.hub import Hub
from support.process import eventually

from umbel.routing.connections import Connection
from umbel.routing.rabbitmq.ahead import MOST_AHEAD

pytestmark = pytest.mark.brokers("rabbitmq")

APP = """
import time
from pathlib import Path
from umbel import Message, Umbel, WorkQueue

app = Umbel("shop")
MARKS = Path(__file__).parent / "marks"

class Work(Message, name="shop.work", version=1):
    what: str
    seconds: float = 0

@app.job
def work(message: Work) -> None:
    with MARKS.open("a") as file:
        file.write(f"{message.what}\\n")
    time.sleep(message.seconds)

@app.job(queue=WorkQueue("bounded", prefetch=3), name="shop.bounded")
def bounded(message: Work) -> None:
    time.sleep(message.seconds)
"""


@pytest.fixture
def shop(write_app) -> ModuleType:
    """The app above."""
    return write_app(APP)


def marks(shop: ModuleType) -> Counter[str]:
    """How often each message was begun."""
    return Counter(shop.MARKS.read_text().split() if shop.MARKS.exists() else ())


def send(shop: ModuleType, name: str, many: int, seconds: float = 0) -> list[str]:
    """So many, one after the other; what they mark."""
    what = [f"{name}{number}" for number in range(many)]
    shop.work.send_many(shop.Work(what=one, seconds=seconds) for one in what)
    return what


def test_of_short_jobs_many_are_held(shop, rabbitmq, start_worker):
    """Each runs once, and of long ones that come then no more than may run."""
    sent = send(shop, "short", 1500, seconds=0.001)
    worker = start_worker(shop, queues=["shop"])
    eventually(lambda: rabbitmq.counts("shop")[1] > MOST_AHEAD // 2)
    eventually(lambda: rabbitmq.counts("shop") == (0, 0), 30)
    sent += send(shop, "nap", 4, seconds=3)
    eventually(lambda: rabbitmq.counts("shop") == (3, 1))
    worker.kill()
    worker.close()
    start_worker(shop, queues=["shop"], concurrency=4)
    eventually(lambda: rabbitmq.counts("shop") == (0, 0), 20)
    assert marks(shop) == Counter([*sent, "nap0"])


def test_a_worker_that_is_killed_loses_nothing_that_it_has_read_ahead(shop, rabbitmq, start_worker):
    """Again and again; only what ran just then runs once more."""
    sent = send(shop, "short", 4000)
    for kill in range(1, 4):
        worker = start_worker(shop, queues=["shop"])
        eventually(lambda: marks(shop).total() >= 800 * kill)  # noqa: B023  asked for here only
        worker.kill()
        worker.close()
    start_worker(shop, queues=["shop"])
    eventually(lambda: marks(shop).keys() == set(sent), 30)
    eventually(lambda: rabbitmq.counts("shop") == (0, 0))
    assert marks(shop).total() <= len(sent) + 3


def test_a_long_job_holds_no_short_one(shop, rabbitmq, start_worker):
    """What was read ahead goes to others; and later this worker goes on."""
    sent = send(shop, "short", 500) + send(shop, "nap", 1, seconds=6) + send(shop, "more", 100)
    first = start_worker(shop, queues=["shop"])
    eventually(lambda: marks(shop)["nap0"])
    eventually(lambda: rabbitmq.counts("shop") == (100, 1))
    second = start_worker(shop, queues=["shop"])
    eventually(lambda: rabbitmq.counts("shop") == (0, 1), 5)
    second.stop()
    sent += send(shop, "last", 100)
    eventually(lambda: rabbitmq.counts("shop") == (0, 0))
    assert marks(shop) == Counter(sent)
    assert first.stop() == 0


def test_places_that_become_free_are_filled_one_by_one(shop, rabbitmq, start_worker):
    """While one long job goes on, the other place takes what it can run and no more."""
    sent = send(shop, "short", 500) + send(shop, "nap", 1, seconds=8)
    sent += send(shop, "pause", 1, seconds=1) + send(shop, "step", 12, seconds=0.3)
    start_worker(shop, queues=["shop"], concurrency=2)
    eventually(lambda: marks(shop)["step0"])
    eventually(lambda: rabbitmq.counts("shop")[1] <= 2, 3)
    until = monotonic() + 2.5
    while monotonic() < until:
        assert rabbitmq.counts("shop")[1] <= 2
    eventually(lambda: rabbitmq.counts("shop") == (0, 1))
    eventually(lambda: rabbitmq.counts("shop") == (0, 0), 20)
    assert marks(shop) == Counter(sent)


def test_a_queue_with_a_prefetch_keeps_to_it(shop, rabbitmq, start_worker):
    """Somebody has said how many."""
    shop.bounded.send_many(shop.Work(what="") for _ in range(300))
    shop.bounded.send_many(shop.Work(what="", seconds=1) for _ in range(5))
    start_worker(shop, queues=["bounded"])
    eventually(lambda: rabbitmq.counts("bounded") == (2, 3))
    eventually(lambda: rabbitmq.counts("bounded") == (0, 0))


def test_a_worker_that_ends_gives_back_what_it_read_ahead(shop, rabbitmq, start_worker):
    """At once, not when the last job is done."""
    send(shop, "short", 500)
    send(shop, "nap", 1, seconds=4)
    send(shop, "more", 50)
    worker = start_worker(shop, queues=["shop"])
    eventually(lambda: marks(shop)["nap0"])
    worker.terminate()
    eventually(lambda: rabbitmq.counts("shop") == (50, 1), 3)
    eventually(lambda: rabbitmq.counts("shop") == (50, 0))


def test_who_stood_still_begins_nothing_that_it_has_read_ahead(rabbitmq):
    """Others may have it by now. Only the clock is set back here."""
    taken: list[Any] = []
    with Connection(rabbitmq.url, heartbeat=1) as connection:
        channel, hub = connection.default_channel, Hub()
        channel.queue_declare("q", durable=True, auto_delete=False)
        for number in range(4):
            message = channel.prepare_message(b"%d" % number)
            channel.basic_publish(message, routing_key="q")
        channel.basic_qos(0, 1, False)
        channel.read_ahead(hub)
        channel.basic_consume("q", "tag", callback=taken.append)
        [ahead] = channel._ahead.values()
        ahead._is_fast = True
        ahead.refill()
        eventually(lambda: len(ahead._held) == 3 or connection.drain_events(timeout=1))

        def settle() -> None:
            channel.basic_ack(taken[-1].delivery_tag)
            for callback in hub._pop_ready():
                callback()

        settle()
        assert len(taken) == 2
        channel.connection._said_at -= 10
        settle()
        assert len(taken) == 2

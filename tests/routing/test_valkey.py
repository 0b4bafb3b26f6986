"""The transport beside plain Celery's, and what it asks of the server."""

from __future__ import annotations

from collections import Counter
from types import ModuleType
from typing import Any

import pytest
from celery import Celery
from kombu import Exchange, Queue
from kombu.transport.virtual import Channel as VirtualChannel
from support.process import eventually

from umbel.routing.connections import Connection

OURS = """
import os
from pathlib import Path
from umbel import Message, Umbel

# What a plain worker left is looked for every hundred seconds, and taken over after an hour.
SOON = {"visibility_timeout": 1, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}
app = Umbel("shop", broker_transport_options=SOON)
MARKS = Path(__file__).parent / "marks"

class Say(Message, name="shop.say", version=1):
    text: str

@app.job
def say(message: Say) -> str:
    file = os.open(MARKS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, f"{message.text} {os.environ['WHO']}\\n".encode())
    os.close(file)
    return message.text

@app.task(name="shop.plain", shared=False)
def plain(text: str) -> None:
    say.function(Say(text=text))
"""

PLAIN = """
import os, signal
from pathlib import Path
from celery import Celery

app = Celery("shop", broker=os.environ["UMBEL_BROKER_URL"])
app.conf.update(task_default_queue="shop", task_acks_late=True, worker_prefetch_multiplier=1)
MARKS = Path(__file__).parent / "marks"

def mark(text):
    file = os.open(MARKS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, f"{text} {os.environ['WHO']}\\n".encode())
    os.close(file)

@app.task(name="shop.say", shared=False)
def say(message):
    mark(message["text"])

@app.task(name="shop.plain", shared=False)
def plain(text):
    mark(text)
    if text == "hold":
        os.kill(os.getppid(), signal.SIGSTOP)
"""


@pytest.fixture
def ours(write_app) -> ModuleType:
    """An app of ours."""
    return write_app(OURS)


@pytest.fixture
def plain(write_app) -> ModuleType:
    """Plain Celery on the same queue."""
    return write_app(PLAIN, name="plain")


def marks(app: ModuleType) -> list[tuple[str, str]]:
    """What was said, and by whose worker."""
    lines = app.MARKS.read_text().splitlines() if app.MARKS.exists() else []
    return [(text, who) for text, who in (line.split() for line in lines)]


# Beside plain Celery.


@pytest.mark.parametrize("who", ["ours", "plain"])
def test_either_kind_of_worker_takes_either_kind_of_message(who, ours, plain, start_worker):
    """Jobs and tasks, whoever sent them."""
    ours.say.send(ours.Say(text="job"))
    ours.plain.delay("task")
    plain.say.delay({"text": "their-job"})
    plain.plain.delay("their-task")
    start_worker({"ours": ours, "plain": plain}[who], env={"WHO": who})
    expected = {(text, who) for text in ("job", "task", "their-job", "their-task")}
    eventually(lambda: set(marks(ours)) == expected, 10, lambda: str(marks(ours)))


def test_both_kinds_of_worker_share_a_queue(ours, plain, start_worker, valkey):
    """Each message to one of them, and nothing is left."""
    for who, app in (("ours", ours), ("plain", plain)):
        start_worker(app, env={"WHO": who})
    for number in range(200):
        ours.say.send(ours.Say(text=f"{number}"))
    eventually(lambda: len(marks(ours)) == 200, 20)
    counts = Counter(text for text, _ in marks(ours))
    assert counts == Counter(f"{number}" for number in range(200))
    assert {who for _, who in marks(ours)} == {"ours", "plain"}
    client = valkey.client()
    eventually(lambda: not (client.keys("_umbel.claims.*") or client.hlen("unacked")))


def test_what_a_dead_plain_worker_left_is_taken_over(ours, plain, start_worker, valkey):
    """By its own rule, the visibility timeout."""
    theirs = start_worker(plain, env={"WHO": "plain"})
    plain.plain.delay("hold")
    eventually(lambda: marks(plain) == [("hold", "plain")])
    theirs.kill()
    assert valkey.client().hlen("unacked") == 1
    start_worker(ours, env={"WHO": "ours"})
    eventually(lambda: ("hold", "ours") in marks(plain), 20)
    assert not valkey.client().hlen("unacked")


def test_a_plain_worker_takes_nothing_that_is_held(ours, plain, start_worker, valkey):
    """Long jobs are in no list, and in nobody's `unacked`."""
    client = valkey.client()
    with Connection(valkey.url, transport_options={"visibility_timeout": 1}) as connection:
        channel = connection.default_channel
        ours.say.send(ours.Say(text="held"))
        message = channel.basic_get("shop")
        start_worker(plain, env={"WHO": "plain"})
        plain.plain.delay("next")
        eventually(lambda: marks(plain) == [("next", "plain")])
        eventually(lambda: not client.exists("shop", "unacked"))
        message.reject(requeue=True)
        eventually(lambda: ("held", "plain") in marks(plain))


# Copies and ways back.


def test_each_copy_is_settled_on_its_own(valkey):
    """Kombu gives the copies of one publish one tag, and the first settlement ends them all."""
    with Connection(valkey.url) as connection:
        channel = connection.default_channel
        exchange = Exchange("news", "topic")
        for name in ("one", "two"):
            Queue(name, exchange, routing_key="a.*").bind(channel).declare()
        connection.Producer().publish("it", exchange=exchange, routing_key="a.b")
        one, two = channel.basic_get("one"), channel.basic_get("two")
        assert one.delivery_tag != two.delivery_tag
        one.ack()
        two.reject(requeue=True)
        client = valkey.client()
        eventually(lambda: client.llen("two") == 1 and not client.keys("_umbel.claims.*"))
        assert not client.exists("one")


def test_a_name_without_more_words_matches_a_pattern_with_any(valkey):
    """`#` is no word too."""
    with Connection(valkey.url) as connection:
        channel = connection.default_channel
        exchange = Exchange("news", "topic")
        Queue("all", exchange, routing_key="order.#").bind(channel).declare()
        for name in ("order", "order.new", "order.new.big", "orders", "border"):
            connection.Producer().publish(name, exchange=exchange, routing_key=name)
        assert valkey.client().llen("all") == 3


def test_priorities_are_kept(valkey):
    """The lists are Kombu's: its 0 is served first."""
    with Connection(valkey.url) as connection:
        channel = connection.default_channel
        channel.queue_declare("q")
        producer = connection.Producer()
        for priority in (9, 3, 0, 6):
            producer.publish(str(priority), routing_key="q", priority=priority)
        taken = [channel.basic_get("q") for _ in range(4)]
        assert [message.payload for message in taken] == ["0", "3", "6", "9"]
        assert channel.basic_get("q") is None


def test_queues_are_counted_and_purged_as_ever(valkey, ours):
    """What Flower's broker page and scalers ask for."""
    with Connection(valkey.url) as connection:
        channel: VirtualChannel = connection.default_channel
        ours.say.send_many([ours.Say(text="x") for _ in range(3)])
        assert channel.queue_declare("shop", passive=True).message_count == 3
        assert valkey.client().llen("shop") == 3
        assert channel.queue_purge("shop") == 3
        assert not valkey.client().exists("shop")


# What it costs to wait.


def test_idle_workers_ask_nothing_and_one_is_woken(ours, start_worker, valkey):
    """But for the beats of their hearts, and Kombu's sweeps: nobody looks for messages. For one
    that comes one worker does, and not all."""
    env = {"WHO": "ours", "UMBEL_LEASE_S": "50"}
    options = ["--without-mingle", "--without-gossip", "--without-heartbeat"]
    for _ in range(4):
        start_worker(ours, env=env, pool="solo", options=options)
    client = valkey.client()
    ours.say.send(ours.Say(text="first"))
    eventually(lambda: len(marks(ours)) == 1)
    eventually(lambda: not client.keys("_umbel.claims.*"))

    def commands() -> Counter[str]:
        stats: dict[str, Any] = client.info("commandstats")
        return Counter({name[8:]: stats[name]["calls"] for name in stats})

    before = commands()
    eventually(lambda: client.info("server")["uptime_in_seconds"] % 3 == 0)
    idle = commands() - before
    assert not idle.keys() & {"brpop", "rpop", "lpop", "blmove", "hset"}, idle
    ours.say.send(ours.Say(text="second"))
    eventually(lambda: len(marks(ours)) == 2)
    eventually(lambda: not client.keys("_umbel.claims.*"))
    woken = commands() - before
    assert woken["rpop"] <= 8 * 2, woken  # four lists each time that one worker looks


def test_a_backlog_is_worked_off_though_nobody_rings(ours, start_worker, valkey):
    """Who is to wake the others is stopped: they look by themselves, and then go on until the queue
    is empty."""
    client = valkey.client()
    client.zadd("_umbel.consumers", {"stopped": 1e15})
    client.hset("_umbel.watchers", "shop", "stopped.1")
    with client.pubsub() as ear:
        ear.subscribe("_umbel.wake.stopped.1")
        eventually(lambda: client.pubsub_numsub("_umbel.wake.stopped.1")[0][1])
        start_worker(ours, env={"WHO": "ours"}, pool="solo")
        eventually(lambda: client.scard("_umbel.waiting.shop"))
        ours.say.send_many([ours.Say(text=f"{number}") for number in range(20)])
        eventually(lambda: len(marks(ours)) == 20, 8)


def test_our_pools_are_not_plain_celerys(ours, valkey):
    """Kombu shares pools by URL; a plain app in this process gets none of ours."""
    ours.say.send(ours.Say(text="x"))
    theirs = Celery("theirs", broker=valkey.url)
    with theirs.pool.acquire() as connection:
        assert type(connection.transport).__module__.startswith("kombu.")
    with ours.app.pool.acquire() as connection:
        assert type(connection.transport).__module__.startswith("umbel.")

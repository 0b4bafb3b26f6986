"""The topology command: what is declared, what the broker has, and what differs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import pytest
from celery import Celery
from click.testing import CliRunner
from kombu import Exchange, Queue
from kombu.exceptions import OperationalError
from support.process import eventually

from umbel import MessageRefused
from umbel.cli.topology import topology
from umbel.routing.topics import topics

both = pytest.mark.brokers("valkey", "rabbitmq")

APP = """
from pathlib import Path
from umbel import Event, Message, Retry, Umbel, WorkQueue

app = Umbel("shop")
MARKS = Path(__file__).parent / "marks"

class Say(Message, name="shop.say", version=1):
    text: str

class Move(Message, name="shop.move", version=1):
    key: str

class Sold(Event, name="shop.sold", version=1):
    number: int

@app.job(queue=WorkQueue("says", priorities=True, prefetch=2), retry=Retry(delays_s=[1, 5]))
def say(message: Say) -> None:
    with MARKS.open("a") as file:
        file.write(f"{message.text} {say.request.delivery_info['routing_key']}\\n")

@app.job(queue=WorkQueue("moves", shards=2), shard_key="key")
def move(message: Move) -> None: ...

@app.subscribe(Sold, "shop.*.done", timeout_s=9, retry=Retry(delays_s=[60, 600]))
def book(event: Sold) -> None:
    with MARKS.open("a") as file:
        file.write(f"sold {event.number}\\n")

@app.task(name="plain", shared=False)
def plain(text):
    with MARKS.open("a") as file:
        file.write(f"{text} {plain.request.delivery_info['routing_key']}\\n")
"""


@pytest.fixture
def shop(write_app):
    """The app, on each broker."""
    return write_app(APP)


@pytest.fixture
def run(shop) -> Callable[..., str]:
    """What a command says, with its exit status in front."""

    def run(*arguments: str, **options: str) -> str:
        done = CliRunner().invoke(topology, arguments, obj=SimpleNamespace(app=shop.app), **options)
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        return f"{done.exit_code}: {done.output}"

    return run


@both
def test_check_finds_what_is_missing_and_declare_mends_it(shop, run):
    """From then on events are kept, with no worker there; declaring again changes nothing."""
    missing = run("check")
    assert missing.startswith("1: ")
    assert re.search("shop.book: (does not get 'shop.sold' yet|is not there): topology", missing)
    assert "moves.1 is there\n" in run("declare")
    shop.app.publish(shop.Sold(number=1))
    assert run("declare").startswith("0: ")
    found = run("check")
    assert found.startswith("0: ")
    assert "note: shop.book: 1 messages wait, and no worker answered that consumes it" in found
    refused = run("unsubscribe", "book", input="n\n")
    assert refused.startswith("1: 1 events wait in shop.book. Drop them? [y/N]: n\n")
    gone = run("unsubscribe", "book", "--yes")
    assert "0: shop.book is gone; dropped events: 1\n" in gone
    assert "comes back with the next worker: subscriber 'book' is still declared" in gone
    nobody = run("unsubscribe", "book", "--yes")
    assert "1: Error: no events go to a queue 'shop.book'; subscribers of this app: book" in nobody
    assert "says is no subscriber's queue" in run("unsubscribe", "x", "--queue", "says")


@both
def test_what_a_worker_consumes_is_not_said_to_be_left_alone(shop, run, start_worker):
    """And a worker declares all that is checked."""
    start_worker(shop, queues=["says"])
    run("declare")
    shop.move.send(shop.Move(key="a"))
    found = run("check")
    assert found.startswith("0: ")
    assert re.search(r"note: moves.\d: 1 messages wait", found)
    assert "says" not in found


def test_a_subscription_that_nobody_declares_is_found(shop, run):
    """By its binding; it is removed by its queue's name."""
    run("declare")
    with shop.app.connection_for_write() as connection:
        old = Queue("old", topics("shop"), routing_key="shop.#", durable=True)
        old(connection.default_channel).declare()
    assert "old: gets 'shop.#', which no subscription of this app declares" in run("check")
    assert "old is gone" in run("unsubscribe", "mail", "--queue", "old")
    assert run("check").startswith("0: ")


@pytest.mark.brokers("rabbitmq")
def test_a_queue_with_other_arguments_is_found(shop, run):
    """RabbitMQ keeps those of its first declaration; nothing is said to be mended."""
    with shop.app.connection_for_write() as connection:
        Queue("says", Exchange(""), durable=True)(connection.default_channel).queue_declare()
    for command in ("check", "declare"):
        said = run(command)
        assert said.startswith("1: ")
        assert re.search("is there with other arguments .*inequivalent arg 'x-.*says'", said)


def test_another_number_of_shards_is_found(shop, write_app, run):
    """It is in the store from the first send or declaration on."""
    run("declare")
    more = write_app(APP.replace("shards=2", "shards=3"), "more")
    done = CliRunner().invoke(topology, ["check"], obj=SimpleNamespace(app=more.app))
    assert done.exit_code == 1
    assert "moves: has 2 shards in use, and this program has 3: see app.reshard" in done.output


def test_show_says_what_is_declared_and_who_said_so(app_dir, write_app):
    """For people, for programs and as a picture."""
    configured = '[queues.says]\nprefetch = 7\n[jobs."shop.say"]\ntimeout_s = 3'
    (app_dir / "umbel.toml").write_text(configured)
    shop = write_app(APP)
    run = CliRunner().invoke
    table = run(topology, ["show"], obj=SimpleNamespace(app=shop.app)).output
    assert "queue says, prefetch 7, priorities [prefetch by umbel.toml]\n" in table
    said = r"job shop.say, then after s \[1, 5\], timeout_s 3.0, .*\[timeout_s by umbel.toml\]"
    assert re.search(said, table)
    assert "    events of shop.topics: shop.sold, shop.*.done\n" in table
    shown = json.loads(run(topology, ["show", "--json"], obj=SimpleNamespace(app=shop.app)).output)
    queues = {queue["name"]: queue for queue in shown["queues"]}
    assert queues["moves"]["parts"] == ["moves.0", "moves.1"]
    assert queues["shop.book"]["jobs"][0]["kind"] == "subscribers"
    picture = run(topology, ["show", "--format", "mermaid"], obj=SimpleNamespace(app=shop.app))
    assert re.search(r'exchange -- "shop.sold" --> q\d', picture.output)


@pytest.mark.brokers("rabbitmq")
def test_a_plain_producer_declares_what_show_celery_prints(shop, run, start_worker, broker):
    """Its messages are run; without the arguments RabbitMQ would refuse it."""
    start_worker(shop, queues=["says"])
    names: dict = {}
    exec(run("show", "--celery").partition(": ")[2], names)
    with Celery("plain", broker=broker.url, task_queues=names["task_queues"]) as plain:
        plain.send_task("shop.say", [{"text": "hello"}], queue="says.high", ignore_result=True)
    eventually(lambda: shop.MARKS.exists() and shop.MARKS.read_text() == "hello says.high\n", 30)


@both
def test_a_command_that_no_queue_takes_is_refused(shop):
    """Wherever nobody is bound: an exchange that is not there, and one with another key."""
    with shop.app.connection_for_write() as connection:
        bound = Queue("bound", Exchange("bound", durable=True), routing_key="here", durable=True)
        bound(connection.default_channel).declare()
        for exchange in ("nowhere", "bound"):
            options = {"exchange": exchange, "routing_key": "there"}
            with pytest.raises(OperationalError, match="no queue|NOT_FOUND"):
                shop.say.apply_async(({"text": "?"},), **options)
            with pytest.raises(OperationalError, match="no queue|NOT_FOUND"):
                shop.plain.apply_async(("?",), **options)
            with pytest.raises(MessageRefused), shop.app.sender.reachable("shop.say"):
                shop.say.apply_async(({"text": "?"},), **options)
        shop.plain.apply_async(("!",), exchange="bound", routing_key="here")
        found = connection.default_channel.basic_get("bound", no_ack=True)
        assert found is not None


@both
def test_celerys_own_queues_and_routes_go_on(write_app, start_worker):
    """`task_queues`, `task_routes` and `-Q` beside ours."""
    shop = write_app(
        APP.replace(
            'Umbel("shop")',
            'Umbel("shop", task_queues=[Queue("own", Exchange("own"), routing_key="own", '
            'queue_arguments={"x-queue-type": "quorum"})], '
            'task_routes={"plain": {"queue": "own"}, "shop.say": {"queue": "own"}})',
        ).replace("from pathlib", "from kombu import Exchange, Queue\nfrom pathlib")
    )
    start_worker(shop, queues=["own"])
    shop.plain.delay("plain")
    shop.say.send(shop.Say(text="routed"))

    def ran() -> set[str]:
        return set(shop.MARKS.read_text().splitlines()) if shop.MARKS.exists() else set()

    eventually(lambda: ran() == {"plain own", "routed own"}, 30, lambda: str(ran()))


def test_it_is_a_command_of_celery(shop):
    """By its entry point."""
    command = [sys.executable, "-m", "celery", "-A", shop.__name__, "topology", "show"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "queue says, prefetch 2, priorities\n" in done.stdout, done.stderr


@both
def test_what_a_broker_keeps_in_part_is_said(shop, run, broker):
    """Priorities and long delays on RabbitMQ: whoever shows or declares them reads it."""
    for command in ("show", "declare"):
        notes = re.findall(r"note: (?:[\w.]+: )?(RabbitMQ .*)", run(command))
        assert len(notes) == (2 if broker.name == "rabbitmq" else 0), notes

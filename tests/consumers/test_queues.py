"""Work queues: priorities, prefetch, shards in order; keys that run one at a time, or once."""

from __future__ import annotations

from collections import defaultdict
from itertools import pairwise
from types import ModuleType

import pytest
from support.process import eventually

from umbel import ContractError, Message, ShardsChanged, Umbel, WorkQueue

APP = """
import os, time
from pathlib import Path
from umbel import JobContext, Message, Retry, Umbel, WorkQueue

app = Umbel("shop", lease_s=2)
MARKS = Path(__file__).parent / "marks"

def mark(*what):
    file = os.open(MARKS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, (" ".join(map(str, what)) + "\\n").encode())
    os.close(file)

class Say(Message, name="shop.say", version=1):
    text: str

class Long(Message, name="shop.long", version=1):
    number: int

class Short(Message, name="shop.short", version=1):
    number: int

class Move(Message, name="shop.move", version=1):
    key: str
    number: int
    fails: int = 0

class Book(Message, name="shop.book", version=1):
    room: str
    number: int

class Pay(Message, name="shop.pay", version=1):
    order: str
    fails: bool = False

@app.job(queue=WorkQueue("says", priorities=True))
def say(message: Say) -> None:
    mark(message.text)

@app.job(queue=WorkQueue("longs", prefetch=1))
def long(message: Long) -> None:
    mark("begin", message.number)
    time.sleep(0.2)
    mark("end", message.number)

@app.job
def short(message: Short) -> None:
    mark("short", message.number)
    time.sleep(0.02)

@app.job(
    queue=WorkQueue("moves", shards=4),
    shard_key="key",
    retry=Retry(immediate=1, delays_s=[0.3]),
    max_deliveries=5,
)
def move(message: Move, context: JobContext) -> None:
    mark(message.key, message.number, context.attempt)
    assert context.attempt > message.fails
    time.sleep(0.01)

@app.job(
    name="shop.move-relaxed",
    queue=WorkQueue("loose", shards=2),
    shard_key="key",
    order="relaxed",
    retry=Retry(delays_s=[1.5]),
)
def relaxed(message: Move, context: JobContext) -> None:
    mark(message.number, context.attempt)
    assert context.attempt > message.fails

@app.job(concurrency_key="room")
def book(message: Book) -> None:
    mark("in", message.room)
    time.sleep(0.1)
    mark("out", message.room)

@app.job(idempotency_key=lambda message: f"order-{message.order}")
def pay(message: Pay) -> str:
    mark("pay", message.order)
    time.sleep(0.3)
    assert not message.fails
    return f"paid {message.order}"
"""


@pytest.fixture
def shop(write_app) -> ModuleType:
    """The app, on each broker."""
    return write_app(APP)


def marks(shop: ModuleType) -> list[list[str]]:
    """What the jobs noted, in its order."""
    lines = shop.MARKS.read_text().splitlines() if shop.MARKS.exists() else []
    return [line.split() for line in lines]


both = pytest.mark.brokers("valkey", "rabbitmq")


@both
@pytest.mark.parametrize("pool", ["prefork", "solo"])
def test_what_is_urgent_goes_first(shop, start_worker, broker, pool):
    """On RabbitMQ a worker holds some of each level, and serves them as they come."""
    for priority in ("low", "normal", "high"):
        for number in range(8):
            shop.say.send(shop.Say(text=f"{priority}{number}"), priority=priority)
    start_worker(shop, pool=pool, queues=["says"])
    eventually(lambda: len(marks(shop)) == 24, 30)
    order = [text for [text] in marks(shop)]
    if "amqp" in broker.url:
        assert min(order.index(f"high{number}") for number in range(8)) <= 4
        return
    urgent = [f"{priority}{n}" for priority in ("high", "normal", "low") for n in range(8)]
    assert order == urgent


def test_a_priority_is_wanted_where_there_are_any(shop):
    """And only there."""
    with pytest.raises(ValueError, match="queue 'shop' has no priorities"):
        shop.short.send(shop.Short(number=1), priority="high")
    with pytest.raises(ValueError, match="priority='urgent'; expected 'high', 'normal', 'low'"):
        shop.say.send(shop.Say(text="?"), priority="urgent")


@both
def test_a_retry_keeps_its_priority(write_app, start_worker):
    """It goes back to the queue that it came from."""
    shop = write_app(
        APP.replace(
            "priorities=True))\ndef say(message: Say) -> None:\n    mark(message.text)",
            "priorities=True), retry=Retry(immediate=1))\n"
            "def say(message: Say, context: JobContext) -> None:\n"
            '    mark(say.request.delivery_info["routing_key"], context.attempt)\n'
            "    assert context.attempt == 2",
        )
    )
    start_worker(shop)
    shop.say.send(shop.Say(text="x"), priority="high")
    expected = [["says.high", "1"], ["says.high", "2"]]
    eventually(lambda: marks(shop) == expected, 30, lambda: str(marks(shop)))


@both
def test_prefetch_is_of_each_queue(shop, start_worker):
    """A worker of two processes runs one of the long ones at a time, and short ones beside it."""
    for number in range(5):
        shop.long.send(shop.Long(number=number))
    shop.short.send_many(shop.Short(number=number) for number in range(30))
    start_worker(shop, concurrency=2)
    eventually(lambda: len(marks(shop)) == 40, 30)
    longs = [what for what, _ in marks(shop) if what != "short"]
    assert longs == ["begin", "end"] * 5
    first_end = marks(shop).index(["end", "0"])
    assert any(what == "short" for what, _ in marks(shop)[:first_end])


def in_order(shop: ModuleType) -> dict[str, list[int]]:
    """The numbers of each key in the order of their runs; fails where one overtook another."""
    runs = defaultdict(list)
    for key, number, _ in marks(shop):
        if not runs[key] or runs[key][-1] != int(number):
            runs[key].append(int(number))
    for numbers in runs.values():
        assert all(one < following for one, following in pairwise(numbers)), numbers
    return runs


@both
def test_shards_keep_the_order_of_each_key(shop, start_worker):
    """While workers die and messages are retried."""
    workers = [start_worker(shop, concurrency=2) for _ in range(3)]
    keys = [f"key{number}" for number in range(8)]
    for number in range(25):
        fails = 2 if number == 10 else 0
        shop.move.send_many(shop.Move(key=key, number=number, fails=fails) for key in keys)
    eventually(lambda: len(marks(shop)) > 60, 30)
    workers[0].kill()
    start_worker(shop, concurrency=2)

    def done() -> bool:
        return all(len(numbers) == 25 for numbers in in_order(shop).values())

    eventually(lambda: len(in_order(shop)) == 8 and done(), 60, lambda: str(in_order(shop)))
    assert shop.app.dead_letters.count() == 0


@both
def test_a_retry_holds_nobody_up_where_order_is_relaxed(shop, start_worker):
    """It comes again behind the others, to its own shard."""
    start_worker(shop, queues=["loose"])
    for number in range(3):
        shop.relaxed.send(shop.Move(key="a", number=number, fails=int(number == 0)))
    eventually(lambda: len(marks(shop)) == 4, 20)
    assert marks(shop) == [["0", "1"], ["1", "1"], ["2", "1"], ["0", "2"]]


def test_a_message_in_the_wrong_shard_is_moved(shop, start_worker):
    """Its producer counts other shards, or is a stranger."""
    right = shop.move.work_queue.shard("a")
    wrong = next(queue for queue in ("moves.0", "moves.1") if queue != right)
    worker = start_worker(shop)
    shop.move.apply_async((shop.Move(key="a", number=1),), queue=wrong)
    eventually(lambda: marks(shop) == [["a", "1", "1"]])
    assert "its producer counts other shards" in worker.logs()


def test_all_agree_on_the_number_of_shards(shop, write_app, start_worker):
    """A producer and a worker with another one are told; `reshard` changes it."""
    for number in range(20):
        shop.move.send(shop.Move(key=f"key{number % 5}", number=number))
    more = write_app(APP.replace("shards=4", "shards=7"), "more")
    with pytest.raises(ShardsChanged, match="has 4 shards, and this program was written for 7"):
        more.move.send(more.Move(key="a", number=1))
    with pytest.raises(AssertionError, match="has 4 shards"):
        start_worker(more)
    assert more.app.reshard("moves") == 20
    start_worker(more, concurrency=2)
    eventually(lambda: sum(map(len, in_order(more).values())) == 20)


def test_shards_and_keys_go_together():
    """Either without the other is a mistake, and so is a key that is no field."""
    app = Umbel("wrong")

    class Go(Message, name="wrong.go", version=1):
        key: str

    def go(message: Go) -> None: ...

    with pytest.raises(TypeError, match="go together"):
        app.job(shard_key="key")(go)
    with pytest.raises(TypeError, match="go together"):
        app.job(queue=WorkQueue("gos", shards=2))(go)
    with pytest.raises(TypeError, match="'room': Go has no such field; it has: key"):
        app.job(concurrency_key="room")(go)
    for options in ({"priorities": True}, {"prefetch": 3}):
        with pytest.raises(ValueError, match="has shards, which keep their order"):
            WorkQueue("gos", shards=2, **options)
    with pytest.raises(ValueError, match="prefetch=0 of queue 'gos'; >= 1"):
        WorkQueue("gos", prefetch=0)


@both
def test_of_a_concurrency_key_one_runs_at_a_time(shop, start_worker):
    """On all workers; other keys do not wait."""
    for _ in range(2):
        start_worker(shop, concurrency=2)
    for number in range(6):
        for room in ("red", "blue"):
            shop.book.send(shop.Book(room=room, number=number))
    eventually(lambda: len(marks(shop)) == 24, 60)
    for room in ("red", "blue"):
        assert [what for what, which in marks(shop) if which == room] == ["in", "out"] * 6


def test_the_key_of_a_dead_worker_is_free_again(shop, start_worker):
    """After its lease."""
    worker = start_worker(shop)
    shop.book.send(shop.Book(room="red", number=1))
    eventually(lambda: marks(shop) == [["in", "red"]])
    worker.kill()
    start_worker(shop)
    shop.book.send(shop.Book(room="red", number=2))
    eventually(lambda: len([1 for what, _ in marks(shop) if what == "out"]) == 2, 30)


@both
def test_of_an_idempotency_key_one_is_run(shop, start_worker):
    """A second waits for the first, and both have its result."""
    start_worker(shop, concurrency=2)
    handles = [shop.pay.request(shop.Pay(order="7")) for _ in range(3)]
    assert {handle.result(30) for handle in handles} == {"paid 7"}
    assert shop.pay.request(shop.Pay(order="7")).result(30) == "paid 7"
    assert marks(shop) == [["pay", "7"]]


def test_a_failure_frees_the_idempotency_key(shop, start_worker):
    """The next one is run."""
    start_worker(shop)
    failed = shop.pay.request(shop.Pay(order="8", fails=True))
    eventually(lambda: failed.state().final, 30)
    assert shop.pay.request(shop.Pay(order="8")).result(30) == "paid 8"
    assert marks(shop) == [["pay", "8"]] * 2


def test_a_message_without_a_key_is_quarantined(write_app, start_worker):
    """Its worker goes on."""
    shop = write_app(APP.replace('f"order-{message.order}"', "message.order or None"))
    start_worker(shop)
    shop.pay.send(shop.Pay(order=""))
    assert shop.pay.request(shop.Pay(order="9")).result(30) == "paid 9"
    [letter] = shop.app.dead_letters.newest(2)
    assert "idempotency_key= gives None; a key is wanted" in letter.error
    with pytest.raises(ContractError, match="shard_key= gives ''"):
        shop.move.send(shop.Move(key="", number=1))

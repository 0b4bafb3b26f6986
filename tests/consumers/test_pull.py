"""The pull model: the caller's own loop does what a worker does, and is held to the same."""

from __future__ import annotations

import asyncio
import signal
import sys
import threading
from contextlib import ExitStack, closing

import pytest
from support.process import LocalProcess, eventually

from umbel import (
    BrokerUnavailable,
    ContractError,
    JobFailed,
    JobState,
    Message,
    Umbel,
    UnknownQueue,
    WorkQueue,
)
from umbel.consumers.deadletters import Kind, Reason

pytestmark = [
    pytest.mark.brokers("valkey", "rabbitmq"),
    # Celery's backend stores results so.
    pytest.mark.filterwarnings("ignore:Call to deprecated setex:DeprecationWarning"),
]

APP = """
import os
from umbel import Completed, Event, Message, Retry, Umbel, WorkQueue

app = Umbel("shop", lease_s=2, max_deliveries=2)
BATCH = WorkQueue("batch", priorities=True)
ORDERS = WorkQueue("orders", shards=2)

class Add(Message, name="shop.add", version=1):
    a: int
    b: int = 0

class Note(Message, name="shop.note", version=1):
    text: str

class Change(Message, name="shop.change", version=1):
    order: int
    step: int

class Batch(Message, name="shop.batch", version=1):
    number: int

class Sold(Event, name="shop.sold", version=1):
    number: int

@app.job(queue="sums")
def add(message: Add) -> int: ...

@app.job(queue="sums", retry=Retry(immediate=1))
def note(message: Note) -> None: ...

@app.job(queue=BATCH)
def batch(message: Batch) -> None: ...

@app.job(queue=ORDERS, shard_key="order", retry=Retry(immediate=1))
def change(message: Change) -> None: ...

@app.job(name="told", queue="told")
def told(message: Completed[int]) -> None: ...

@app.subscribe(Sold)
def book(event: Sold) -> None: ...
"""

SCRIPT = """
import sys, time
import {app} as shop

for delivery in shop.app.pull("sums"):
    with delivery as message:
        print(f"got {{message}} in run {{delivery.attempt}}", flush=True)
        time.sleep(600)
"""


@pytest.fixture
def shop(write_app):
    """An app with jobs whose functions nobody calls."""
    return write_app(APP)


@pytest.fixture
def puller(shop, app_dir):
    """A process that pulls one message and dwells on it."""
    (app_dir / "script.py").write_text(SCRIPT.format(app=shop.__name__))
    command = [sys.executable, "script.py"]
    with ExitStack() as processes:

        def start() -> LocalProcess:
            process = LocalProcess(name="puller", command=command, cwd=app_dir, ready="got ")
            return processes.enter_context(closing(process)).start()

        yield start


def pulled(shop, queue: str, **options) -> list[Message]:
    """All that is there."""
    messages = []
    for delivery in shop.app.pull(queue, timeout_s=options.pop("timeout_s", 0.5), **options):
        with delivery as message:
            messages.append(message)
    return messages


def test_messages_come_into_the_callers_loop(shop):
    """Of several jobs on one queue, each with its contract; they are done and gone after."""
    shop.add.send(shop.Add(a=1))
    shop.note.send(shop.Note(text="two"))
    assert pulled(shop, "sums") == [shop.Add(a=1), shop.Note(text="two")]
    assert pulled(shop, "sums") == []


def test_a_result_is_the_handles(shop):
    """It is checked where it is set, progress is told, callbacks are sent."""
    handle = shop.add.request(shop.Add(a=1, b=2), on_success=shop.told)
    assert handle.state() is JobState.QUEUED
    for delivery in shop.app.pull("sums", limit=1):
        with delivery as message:
            assert (delivery.job, delivery.job_id, delivery.attempt) == (shop.add, handle.id, 1)
            assert handle.state() is JobState.RUNNING
            delivery.context.progress(1, 2, "half")
            assert handle.progress().note == "half"
            with pytest.raises(ValueError, match="valid integer"):
                delivery.result = "many"
            delivery.result = message.a + message.b
    assert handle.result(5) == 3
    assert [message.result for message in pulled(shop, "told")] == [3]


def test_a_result_that_is_missing_fails_where_somebody_waits_for_it(shop):
    """And is nothing to those who sent and forgot."""
    shop.add.send(shop.Add(a=1))
    handle = shop.add.request(shop.Add(a=2))
    assert len(pulled(shop, "sums")) == 2
    with pytest.raises(JobFailed, match="did not set delivery.result"):
        handle.result(5)
    [letter] = shop.app.dead_letters.newest(9)
    assert letter.job_id == handle.id


def test_an_exception_counts_as_the_jobs(shop):
    """By its policy a second run or the dead letters; the loop goes on."""
    shop.note.send(shop.Note(text="again"))
    shop.add.send(shop.Add(a=1))
    runs = []
    for delivery in shop.app.pull("sums", timeout_s=1):
        with delivery as message:
            runs.append((type(message).__name__, delivery.attempt))
            raise ValueError("no such thing")
    assert sorted(runs) == [("Add", 1), ("Note", 1), ("Note", 2)]
    letters = {letter.job: letter for letter in shop.app.dead_letters.newest(9)}
    assert letters["shop.note"].attempts == 2
    assert letters["shop.add"].reason is Reason.FAILED
    assert "no such thing" in letters["shop.add"].error
    assert 'raise ValueError("no such thing")' in letters["shop.add"].traceback


def test_leaving_the_program_gives_the_message_back(shop):
    """What is no error of the job counts for nothing; and so does a delivery that is not begun."""
    shop.add.send(shop.Add(a=1))
    for end in (KeyboardInterrupt, SystemExit, KeyboardInterrupt):  # max_deliveries is 2
        deliveries = shop.app.pull("sums")
        delivery = next(deliveries)
        with pytest.raises(end), delivery:
            raise end
        deliveries.close()
    for number, _ in enumerate(shop.app.pull("sums")):
        if number == 3:
            break
    [delivery] = shop.app.pull("sums", limit=1)
    with pytest.raises(RuntimeError, match="was settled before"), delivery:
        pass
    for delivery in shop.app.pull("sums", limit=1):
        with delivery:
            assert delivery.attempt == 1
    assert pulled(shop, "sums") == []
    assert shop.app.dead_letters.count() == 0


def test_limits_and_timeouts_hold(shop):
    """What a loop has not asked for is there for others; one that is left in the block is done."""
    assert pulled(shop, "sums", timeout_s=0) == []
    shop.note.send_many(shop.Note(text=str(number)) for number in range(6))
    assert [note.text for note in pulled(shop, "sums", limit=2)] == ["0", "1"]
    for delivery in shop.app.pull("sums"):
        with delivery as note:
            assert note.text == "2"
            break
    assert [note.text for note in pulled(shop, "sums", limit=2, timeout_s=None)] == ["3", "4"]
    assert [note.text for note in pulled(shop, "sums", timeout_s=0)] == ["5"]
    assert not [thread for thread in threading.enumerate() if thread.name == "umbel-pull"]


def test_who_dies_in_a_block_gives_the_message_back(shop, puller):
    """It counts as a run without an outcome; after `max_deliveries` of them it is a dead letter."""
    handle = shop.add.request(shop.Add(a=1))
    first = puller()
    assert handle.state() is JobState.RUNNING
    counted(shop, 1)
    first.kill()
    second = puller()
    counted(shop, 2)
    second.kill()
    for _ in shop.app.pull("sums", limit=1, timeout_s=8):
        raise AssertionError("it was to be given up")
    with pytest.raises(JobFailed, match="2 workers died in the middle of it"):
        handle.result(5)


def test_who_is_ended_in_a_block_gives_the_message_back_uncounted(shop, puller):
    """Ctrl-C, or a SIGTERM that a program makes its SystemExit."""
    shop.add.send(shop.Add(a=1))
    for _ in range(3):
        process = puller()
        process.signal(signal.SIGINT)
        process.wait()
    assert pulled(shop, "sums", limit=1, timeout_s=5) == [shop.Add(a=1)]


def test_a_block_may_take_longer_than_the_lease(shop):
    """The message is held all the while: nobody else gets it, and it is settled at the end."""
    shop.add.send(shop.Add(a=1))
    for delivery in shop.app.pull("sums", limit=1):
        with delivery:
            assert pulled(shop, "sums", timeout_s=5) == []
            assert not delivery.context.cancelled
    assert pulled(shop, "sums", timeout_s=3) == []


def test_what_does_not_fit_never_reaches_the_loop(shop, broker):
    """Unreadable, of an unknown job, against its contract, expired, cancelled, to be run later."""
    cancelled = shop.add.request(shop.Add(a=1))
    cancelled.cancel()
    expired = shop.add.request(shop.Add(a=2), expires_s=0.01)
    plain = Umbel("shop", broker.url)
    with closing(plain), plain.connection_for_write() as connection:
        producer = connection.Producer()
        producer.publish(b"\xff", routing_key="sums", content_type="text/plain")
        plain.send_task("shop.add", ({"a": "x"},), queue=shop.app.amqp.queue("sums"))
        plain.send_task("shop.odd", ({"a": 1},), queue=shop.app.amqp.queue("sums"))
        late = plain.send_task(
            "shop.add", ({"a": 3},), countdown=2.5, queue=shop.app.amqp.queue("sums")
        )
    shop.add.send(shop.Add(a=4))
    [last] = pulled(shop, "sums", timeout_s=1)
    assert last == shop.Add(a=4)
    for delivery in shop.app.pull("sums", limit=1, timeout_s=5):
        with delivery as message:
            assert (message.a, delivery.job_id) == (3, late.id)
            delivery.result = 3  # a plain producer waits for one
    assert cancelled.state() is JobState.CANCELLED
    assert expired.state() is JobState.EXPIRED
    letters = list(shop.app.dead_letters.newest(9))
    assert {letter.kind for letter in letters} == {Kind.QUARANTINE}
    reasons = sorted(letter.reason for letter in letters)
    assert reasons == sorted([Reason.MALFORMED, Reason.CONTRACT, Reason.UNKNOWN_JOB])


def test_events_come_into_the_loop_of_a_subscriber(shop):
    """By the subscriber's name or its queue's; what the block sends was caused by the event."""
    assert pulled(shop, "book", timeout_s=0) == []
    receipt = shop.app.publish(shop.Sold(number=1))
    for delivery in shop.app.pull("book", limit=1):
        with delivery as event:
            assert event == shop.Sold(number=1)
            assert delivery.job_id == shop.book.handling_id(receipt.id)
            shop.add.send(shop.Add(a=1))
    for delivery in shop.app.pull("sums", limit=1):
        with delivery:
            assert delivery.context.correlation_id == receipt.id
    shop.app.publish(shop.Sold(number=2))
    assert pulled(shop, "shop.book") == [shop.Sold(number=2)]


def test_priorities_are_served_in_order(shop, broker):
    """The more urgent first: on RabbitMQ preferred, not strict."""
    for level in ("low", "normal", "high"):
        for number in range(3):
            shop.batch.send(shop.Batch(number=number + 10 * len(level)), priority=level)
    numbers = [message.number // 10 for message in pulled(shop, "batch")]
    expected = [4, 4, 4, 6, 6, 6, 3, 3, 3]
    assert sorted(numbers) == sorted(expected)
    if broker.url.startswith("redis"):
        assert numbers == expected


def test_shards_keep_the_order_of_a_key(shop):
    """Two loops in two threads; a retry keeps its place."""
    for step in range(6):
        for order in range(4):
            shop.change.send(shop.Change(order=order, step=step))
    done, failed, lock = [], set(), threading.Lock()

    def consume() -> None:
        for delivery in shop.app.pull("orders", timeout_s=1):
            with delivery as message, lock:
                key = (message.order, message.step)
                if message.step == 3 and key not in failed:
                    failed.add(key)
                    raise ValueError("once more")
                done.append(key)

    threads = [threading.Thread(target=consume) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 24
    assert len(failed) == 4
    for order in range(4):
        assert [step for which, step in done if which == order] == [*range(6)]


def test_two_loops_share_a_queue(shop):
    """In two threads of one process: each message to one of them."""
    shop.note.send_many(shop.Note(text=str(number)) for number in range(60))
    texts: list[list[str]] = [[], []]
    both = threading.Barrier(2, timeout=30)

    def consume(mine: list[str]) -> None:
        for delivery in shop.app.pull("sums", timeout_s=1):
            with delivery as message:
                if not mine:
                    both.wait()
                mine.append(message.text)

    threads = [threading.Thread(target=consume, args=(mine,)) for mine in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(texts[0] + texts[1], key=int) == [str(number) for number in range(60)]


def test_the_loop_of_an_async_program(shop):
    """`async for` and `async with`; one that is cancelled in a block gives its message back."""
    shop.add.send(shop.Add(a=1))

    async def dwell(begun: asyncio.Event) -> None:
        async for delivery in shop.app.apull("sums"):
            async with delivery:
                begun.set()
                await asyncio.sleep(600)

    async def main() -> list[Message]:
        begun = asyncio.Event()
        task = asyncio.create_task(dwell(begun))
        await begun.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        messages = []
        async for delivery in shop.app.apull("sums", timeout_s=1):
            async with delivery as message:
                messages.append(message)
                raise ValueError("by the job's policy")
        return messages

    assert asyncio.run(main()) == [shop.Add(a=1)]
    assert shop.app.dead_letters.count() == 1


def test_the_loop_outlives_its_broker(shop, broker):
    """What is pulled after a restart is what was there; while it is away, `timeout_s` says so."""
    shop.note.send(shop.Note(text="before"))
    deliveries = shop.app.pull("sums", timeout_s=30)
    with next(deliveries) as message:
        assert message.text == "before"
    broker.restart()
    shop.note.send(shop.Note(text="after"))
    with next(deliveries) as message:
        assert message.text == "after"
    deliveries.close()
    broker.stop()
    with pytest.raises(BrokerUnavailable, match="nothing could be pulled"):
        list(shop.app.pull("sums", timeout_s=1))


@pytest.mark.brokers("valkey")
def test_what_cannot_be_pulled_is_refused(shop):
    """With what there is."""
    with pytest.raises(UnknownQueue, match="no queue 'odd' of jobs in this app; there are: batch"):
        shop.app.pull("odd")
    with pytest.raises(UnknownQueue):
        shop.app.pull(WorkQueue("odd"))
    with pytest.raises(ContractError):
        shop.add.send({"a": "x"})


def counted(shop, times: int) -> None:
    """The run is noted where it survives its process: on RabbitMQ as a number, on Valkey in a set
    of the process's own."""
    client = shop.app.store.client

    def noted() -> bool:
        for key in client.scan_iter("*begun*"):
            if client.type(key) in {b"set", "set"} or int(client.get(key)) == times:
                return True
        return False

    eventually(noted)

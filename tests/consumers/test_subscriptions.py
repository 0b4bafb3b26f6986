"""Events: whoever has subscribed gets each of them once, whatever becomes of the others."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from support.process import eventually

from umbel import ContractError, Event, Message, Umbel
from umbel.consumers.deadletters import Kind, Reason
from umbel.jobs.subscription import Subscription

pytestmark = pytest.mark.brokers("valkey", "rabbitmq")

APP = """
import os, signal
from pathlib import Path
from umbel import Event, JobContext, Message, Retry, Umbel

app = Umbel("shop")
MARKS = Path(__file__).parent / "marks"
MARKS.mkdir(exist_ok=True)

def mark(name, number):
    with (MARKS / name).open("a") as file:
        file.write(f"{number}\\n")

class Sold(Event, name="shop.sold", version=1):
    number: int

class Returned(Event, name="shop.returned", version=1):
    number: int

class Counted(Event, name="shop.stock.counted", version=1):
    number: int

@app.subscribe(Sold)
def book(event: Sold, context: JobContext) -> None:
    mark("book", event.number)
    mark("ids", f"{context.job_id} {context.correlation_id}")

@app.subscribe(Sold, queue="mail", retry=Retry(immediate=1))
def letter(event: Sold, context: JobContext) -> None:
    mark("letter", event.number)
    if event.number % 5 == 0 and context.attempt == 1:
        raise ValueError("no stamps")

@app.subscribe(Sold, name="fails")
def fails(event: Sold) -> None:
    raise ValueError(event.number)

@app.subscribe(Sold, name="crashes", max_deliveries=2)
def crashes(event: Sold) -> None:
    mark("crashes", event.number)
    if event.number == 3:
        os.kill(os.getpid(), signal.SIGKILL)

@app.subscribe("shop.*")
def audit(event: Sold | Returned) -> None:
    mark("audit", f"{type(event).__name__} {event.number}")

@app.subscribe("shop.#", name="everything")
async def everything(event: Event) -> None:
    mark("everything", f"{type(event).__name__} {event.number}")
"""


@pytest.fixture
def shop(write_app):
    """An app with six subscribers; the test's own copy of it publishes."""
    return write_app(APP)


def marks(shop, name: str) -> Counter[str]:
    """What a subscriber noted, and how often."""
    file = shop.MARKS / name
    return Counter(file.read_text().splitlines() if file.exists() else ())


def numbers(*some: int) -> Counter[str]:
    """Each once."""
    return Counter(map(str, some))


def test_each_subscriber_gets_each_event_once(shop, start_worker):
    """Also while one fails for good, one has a second try and one takes its process along; two
    workers share what there is."""
    start_worker(shop)
    start_worker(shop)
    for number in range(20):
        shop.app.publish(shop.Sold(number=number))
    expected = numbers(*range(20))
    eventually(lambda: marks(shop, "book") >= expected)
    eventually(lambda: marks(shop, "letter") >= expected + numbers(0, 5, 10, 15))
    eventually(lambda: marks(shop, "crashes") >= expected + numbers(3), 20)
    eventually(lambda: shop.app.dead_letters.count() == 21, 20)
    assert marks(shop, "book") == expected
    assert marks(shop, "letter") == expected + numbers(0, 5, 10, 15)
    assert marks(shop, "crashes") == expected + numbers(3)
    assert set(marks(shop, "audit").values()) == set(marks(shop, "everything").values()) == {1}
    reasons = Counter((one.job, one.reason) for one in shop.app.dead_letters.newest(30))
    assert reasons == {("fails", Reason.FAILED): 20, ("crashes", Reason.CRASHED): 1}


def test_a_handling_is_a_job_of_its_own(shop, start_worker):
    """Its id follows from the event's and the subscriber's name, and its cause is the event."""
    start_worker(shop)
    receipt = shop.app.publish(shop.Sold(number=1))
    expected = shop.book.handling_id(receipt.id)
    eventually(lambda: marks(shop, "ids") == Counter([f"{expected} {receipt.id}"]))
    eventually(lambda: shop.app.dead_letters.count() == 1)
    [letter] = shop.app.dead_letters.newest(9)
    assert letter.job_id == shop.fails.handling_id(receipt.id) != expected
    assert letter.headers["ce-id"] == letter.headers["umbel-causation-id"] == receipt.id
    assert letter.headers["ce-type"] == "shop.sold"
    assert json.loads(letter.body)[0] == [{"number": 1}]


def test_who_was_away_gets_what_it_missed(shop, start_worker):
    """From the first declaration of its queue on; before that there is nobody to keep it for."""
    shop.app.publish(shop.Sold(number=0))
    start_worker(shop).stop()
    shop.app.publish(shop.Sold(number=1))
    start_worker(shop, queues=["mail"])
    shop.app.publish(shop.Sold(number=2))
    eventually(lambda: marks(shop, "letter") == numbers(1, 2))
    assert not marks(shop, "book")
    start_worker(shop, queues=["shop.book"])
    eventually(lambda: marks(shop, "book") == numbers(1, 2))


def test_patterns_choose(shop, start_worker):
    """`*` is one word and `#` any number; a handler takes one class, a union or all."""
    start_worker(shop)
    shop.app.publish(shop.Counted(number=1))
    shop.app.publish(shop.Returned(number=2))
    shop.app.publish(shop.Sold(number=3))
    eventually(lambda: marks(shop, "audit") == Counter(["Returned 2", "Sold 3"]))
    eventually(lambda: marks(shop, "everything") == Counter(["Counted 1", "Returned 2", "Sold 3"]))
    assert marks(shop, "book") == numbers(3)


def test_an_event_that_a_handler_does_not_know_is_kept(shop, start_worker):
    """A pattern may match what is younger than the subscriber: nothing is lost by that."""

    class Moved(Event, name="shop.moved", version=1):
        number: int

    start_worker(shop, queues=["shop.everything", "shop.audit"])
    shop.app.publish(Moved(number=1))
    eventually(lambda: shop.app.dead_letters.count() == 2)
    for letter in shop.app.dead_letters.newest(9):
        assert letter.kind is Kind.QUARANTINE
        assert "knows no class of this event" in letter.error


def test_unsubscribing_ends_it(shop, start_worker):
    """No copies are made any more; what waited is dropped, and counted."""
    start_worker(shop).stop()
    shop.app.publish(shop.Sold(number=1))
    assert shop.app.unsubscribe("book") == 1
    shop.app.publish(shop.Sold(number=2))
    assert shop.app.unsubscribe("fails") == 2
    start_worker(shop, queues=["mail"])
    eventually(lambda: marks(shop, "letter") == numbers(1, 2))
    start_worker(shop, queues=["shop.book"])  # who declares it subscribes anew
    shop.app.publish(shop.Sold(number=3))
    eventually(lambda: marks(shop, "book") == numbers(3))


def test_an_event_that_does_not_fit_is_not_published(shop):
    """Nor is a message that is no event; one without a subscriber is."""
    event = shop.Sold(number=1)
    event.number = "many"
    with pytest.raises(ContractError, match=r"shop.sold: number: .*valid integer"):
        shop.app.publish(event)

    class Sell(Message, name="shop.sell", version=1):
        pass

    with pytest.raises(ContractError, match="expected an Event, got a Sell"):
        shop.app.publish(Sell())
    assert shop.app.publish(shop.Counted(number=1)).name == "shop.stock.counted"


@pytest.mark.brokers("valkey")
def test_a_subscriber_that_cannot_be_is_refused_at_its_declaration():
    """With what is wrong."""
    app = Umbel("shop")

    class Sold(Event, name="shop.sold", version=1):
        pass

    class Base(Event):
        pass

    class Sell(Message, name="shop.sell", version=1):
        pass

    def handler(event: Sold) -> None: ...
    def of_a_message(message: Sell) -> None: ...

    assert isinstance(app.subscribe(Sold)(handler), Subscription)
    with pytest.raises(ContractError, match="there is a job 'handler' already"):
        app.subscribe("shop.*")(handler)
    with pytest.raises(TypeError, match="is no Event class and no union of them"):
        app.subscribe(Sold, name="other")(of_a_message)
    with pytest.raises(TypeError, match="Base has no contract"):
        app.subscribe(Base)
    with pytest.raises(ValueError, match="no pattern of event names"):
        app.subscribe("Shop.**")
    with pytest.raises(ValueError, match="subscribe to what"):
        app.subscribe()

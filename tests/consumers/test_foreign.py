"""Documents of other programs are jobs: JSON, XML and CloudEvents, whoever puts them on a queue."""

from __future__ import annotations

import base64
import json
from collections import Counter
from typing import Any
from uuid import NAMESPACE_OID, uuid5

import amqp
import pytest
from support.process import eventually
from support.servers import RabbitMQ, Server

from umbel import JobState, to_xml
from umbel.consumers.deadletters import Kind, Reason

pytestmark = pytest.mark.brokers("valkey", "rabbitmq")

APP = """
import time
from pathlib import Path
from umbel import Event, JobContext, Message, Retry, Umbel, upcast

app = Umbel("shop")
MARKS = Path(__file__).parent / "marks"
MARKS.mkdir(exist_ok=True)

def mark(name, text):
    with (MARKS / name).open("a") as file:
        file.write(f"{text}\\n")

class OldAdd(Message, name="shop.add", version=1):
    one: int
    other: int

class Add(Message, name="shop.add", version=2, aliases=["shop.sum"]):
    a: int
    b: int = 1

@upcast(OldAdd, to=Add)
def named_anew(old: OldAdd) -> Add:
    return Add(a=old.one, b=old.other)

class Fragile(Message, name="shop.fragile", version=1):
    source: str

class Sold(Event, name="shop.sold", version=1):
    number: int

@app.job(queue="sums")
def add(message: Add, context: JobContext) -> int:
    mark("add", f"{message.a}+{message.b}")
    mark("ids", context.job_id)
    mark("correlation", context.correlation_id)
    return message.a + message.b

@app.job(queue="fragile", retry=Retry(immediate=1), max_deliveries=2)
def fragile(message: Fragile, context: JobContext) -> None:
    mark("fragile", f"{message.source} {context.attempt}")
    mark("ids", context.job_id)
    if message.source == "fatal":
        time.sleep(60)
    if message.source == "x" or context.attempt == 1:
        raise ValueError(message.source)

class Other(Message, name="shop.other", version=1):
    pass

@app.job(queue="several")
def other(message: Other) -> None:
    mark("other", "done")

class Third(Message, name="shop.third", version=1):
    pass

@app.job(queue="several", name="third-job")
def third(message: Third) -> None:
    mark("third", "done")

@app.subscribe(Sold)
def book(event: Sold, context: JobContext) -> None:
    mark("book", event.number)
    mark("ids", context.job_id)
    mark("correlation", context.correlation_id)

@app.subscribe("shop.#")
def audit(event: Event) -> None:
    mark("audit", f"{type(event).__name__} {event.number}")
"""
EVENT = {"specversion": "1.0", "id": "7", "source": "urn:till:3", "type": "shop.add"}
EVENT_ID = str(uuid5(NAMESPACE_OID, "urn:till:3 7"))


@pytest.fixture
def shop(write_app):
    """An app with a job to a queue, two to another, and two subscribers."""
    return write_app(APP)


def put(broker: Server, queue: str, body: bytes | str, content_type: Any = None, **more: Any):
    """As a program that knows nothing of Celery does; on Valkey there is only the body."""
    body = body.encode() if isinstance(body, str) else body
    if isinstance(broker, RabbitMQ):
        exchange, headers = more.pop("exchange", ""), more.pop("headers", {})
        if content_type:
            more["content_type"] = content_type
        message = amqp.Message(body, delivery_mode=2, application_headers=headers, **more)
        channel = broker.client().default_channel
        channel.basic_publish(message, exchange=exchange, routing_key=queue)
    else:
        broker.client().lpush(queue, body)


def marks(shop, name: str) -> Counter[str]:
    """What a job noted, and how often."""
    file = shop.MARKS / name
    return Counter(file.read_text().splitlines() if file.exists() else ())


def structured(**attributes: Any) -> str:
    """A CloudEvent as one JSON document."""
    return json.dumps(EVENT | attributes)


def test_documents_of_each_kind_are_done(shop, start_worker, broker):
    """Where the queue, the type or the namespace names the contract."""
    start_worker(shop)
    cloud = "application/cloudevents+json; charset=utf-8"
    bare = "<shop.add><a>5</a></shop.add>"
    put(broker, "sums", '{"a": 1, "b": 1, "newer": true}', "application/json")
    put(broker, "sums", b'\xef\xbb\xbf {"a": 2}')
    put(broker, "sums", to_xml(shop.Add(a=3)), "application/xml")
    put(broker, "sums", to_xml(shop.OldAdd(one=4, other=4)), "text/xml; charset=utf-8")
    put(broker, "sums", bare)
    put(broker, "sums", structured(data={"a": 6}, id="a"), cloud)
    put(broker, "sums", structured(data={"a": 7}, id="b", type="com.till.sum"), "application/json")
    put(broker, "several", structured(data={"a": 8}, id="c", type="shop.sum"), cloud)
    old = {"one": 9, "other": 9}
    put(broker, "sums", structured(data=old, id="d", umbelversion=1), cloud)
    put(broker, "sums", structured(data=old, id="e", dataschema="urn:umbel:shop.add:1"), cloud)
    xml = {"datacontenttype": "application/xml"}
    put(broker, "sums", structured(data=bare, id="f", **xml), cloud)
    data = base64.b64encode(bare.encode()).decode()
    put(broker, "sums", structured(data_base64=data, id="g", **xml), cloud)
    put(broker, "several", structured(id="h", type="shop.third"), cloud)
    put(broker, "several", to_xml(shop.Other()), "application/xml")
    expected = "1+1 2+1 3+1 4+4 5+1 5+1 5+1 6+1 7+1 8+1 9+9 9+9"
    eventually(lambda: marks(shop, "add").total() == 12, expected=lambda: str(marks(shop, "add")))
    assert marks(shop, "add") == Counter(expected.split())
    eventually(lambda: marks(shop, "other") == marks(shop, "third") == {"done": 1})
    assert shop.app.dead_letters.count() == 0
    assert len(set(marks(shop, "ids"))) == 12


def test_an_event_names_its_job_and_is_done_once(shop, start_worker, broker):
    """Source and id of a CloudEvent: the handle finds the state, and a copy is dropped."""
    start_worker(shop)
    put(broker, "sums", structured(data={"a": 1}), "application/cloudevents+json")
    eventually(lambda: marks(shop, "ids") == {EVENT_ID: 1})
    handle = shop.app.handle(EVENT_ID)
    assert (handle.result(10), handle.state()) == (2, JobState.SUCCEEDED)
    put(broker, "sums", structured(data={"a": 1}), "application/cloudevents+json")
    put(broker, "sums", structured(data={"a": 2}, id="8"), "application/cloudevents+json")
    eventually(lambda: marks(shop, "add")["2+1"] == 1)
    assert marks(shop, "add") == {"1+1": 1, "2+1": 1}
    assert marks(shop, "correlation")[EVENT_ID] == 1


@pytest.mark.brokers("rabbitmq")
def test_properties_and_headers_say_what_a_document_does_not(shop, start_worker, broker):
    """On AMQP: CloudEvents in binary mode, the contract, ids, and a trace that goes on."""
    start_worker(shop)
    for number, prefix in enumerate(("cloudEvents:", "cloudEvents_", "ce-")):
        headers = {prefix + name: value for name, value in (EVENT | {"id": str(number)}).items()}
        put(broker, "several", f'{{"a": {number}}}', "application/json", headers=headers)
    headers |= {"ce-id": "3"}
    put(broker, "several", to_xml(shop.Add(a=3)), "application/xml", headers=headers)
    headers = {"umbel-contract": "shop.add", "umbel-version": 1}
    put(broker, "several", '{"one": 4, "other": 4}', headers=headers)
    put(broker, "sums", '{"a": 5}', message_id="mine", correlation_id="ours")
    eventually(lambda: marks(shop, "add").total() == 6)
    assert marks(shop, "add") == Counter(["0+1", "1+1", "2+1", "3+1", "4+4", "5+1"])
    assert shop.app.handle("mine").result(10) == 6
    assert marks(shop, "correlation")["ours"] == 1
    assert marks(shop, "ids")[str(uuid5(NAMESPACE_OID, "urn:till:3 2"))] == 1


def test_what_does_not_fit_is_kept_as_it_came_and_replayed(shop, start_worker, broker):
    """With its own bytes and the reason; after a repair of the code it goes its way."""
    worker = start_worker(shop)
    wrong = {
        '{"source": 5}': Reason.CONTRACT,
        "[1]": Reason.CONTRACT,
        "<shop.unknown/>": Reason.CONTRACT,
        "<shop.fragile><source><b/></source></shop.fragile>": Reason.CONTRACT,
        '<!DOCTYPE a [<!ENTITY b "c">]><shop.fragile><source>&b;</source></shop.fragile>': (
            Reason.MALFORMED
        ),
        "{": Reason.MALFORMED,
        '<shop.fragile xmlns="urn:umbel:shop.fragile:9"><source>x</source></shop.fragile>': (
            Reason.TOO_NEW
        ),
        '{"specversion": "2.0", "id": "1", "source": "s", "type": "t"}': Reason.MALFORMED,
    }
    for document in wrong:
        put(broker, "fragile", document)
    put(broker, "several", "{}")
    eventually(lambda: shop.app.dead_letters.count() == len(wrong) + 1)
    letters = {letter.body.decode(): letter for letter in shop.app.dead_letters.newest(20)}
    assert {body: letter.reason for body, letter in letters.items()} == wrong | {
        "{}": Reason.UNKNOWN_JOB
    }
    assert {letter.kind for letter in letters.values()} == {Kind.QUARANTINE}
    assert "whose jobs are: shop.other, third-job; it names none" in letters["{}"].error
    assert all("Field required" not in letter.error for letter in letters.values())
    problems = shop.app.dead_letters.replay(dry_run=True)
    assert all(one.problem for one in problems)
    worker.stop()
    shop.app.dead_letters.discard(*[letter.id for body, letter in letters.items() if body != "{}"])
    shop.app.dead_letters.replay(to="sums", raw=True)  # to where it fits, but for a field
    start_worker(shop)
    eventually(lambda: shop.app.dead_letters.count() == 1)
    assert "a: Field required" in next(iter(shop.app.dead_letters.newest(1))).error


def test_a_document_is_replayed_once_the_code_knows_it(shop, write_app, start_worker, broker):
    """Checked as a worker would, and sent as it came."""
    unaware = write_app(APP.replace("a: int\n    b: int = 1", "a: int\n    b: int"))
    worker = start_worker(unaware)
    put(broker, "sums", '{"a": 1}', "application/json")
    eventually(lambda: unaware.app.dead_letters.count() == 1)
    worker.stop()
    [problem] = unaware.app.dead_letters.replay()
    assert "b: Field required" in problem.problem
    start_worker(shop)
    [replayed] = shop.app.dead_letters.replay()
    assert replayed.problem == ""
    eventually(lambda: marks(shop, "add") == {"1+1": 1})


def test_a_retry_of_it_is_a_message_like_any(shop, start_worker, broker):
    """Its id stays; what fails for good is a dead letter that can be sent again."""
    start_worker(shop)
    put(broker, "fragile", "<shop.fragile><source>y</source></shop.fragile>")
    eventually(lambda: marks(shop, "fragile") == {"y 1": 1, "y 2": 1})
    assert list(marks(shop, "ids").values()) == [2]
    put(broker, "fragile", '{"source": "x"}')  # which Kombu's own transport for Redis loses
    eventually(lambda: shop.app.dead_letters.count() == 1)
    [letter] = shop.app.dead_letters.newest(1)
    assert (letter.kind, letter.job, letter.attempts) == (Kind.DEAD, "shop.fragile", 2)
    assert json.loads(letter.body)[0] == [{"source": "x"}]
    assert letter.headers["umbel-contract"] == "shop.fragile"


def test_one_that_kills_its_worker_is_counted(shop, start_worker, broker, valkey):
    """Its id stays on Valkey, and after `max_deliveries` runs it is a dead letter."""
    start: dict[str, Any] = {"pool": "threads", "concurrency": 2, "env": {"UMBEL_LEASE_S": "2"}}
    told = "shop:begun:*" if isinstance(broker, RabbitMQ) else "_umbel.begun.*"
    worker = start_worker(shop, **start)
    put(broker, "fragile", '{"source": "fatal"}')
    put(broker, "fragile", '{"source": "fatal", "newer": true}')
    for run in (1, 2):
        eventually(lambda run=run: marks(shop, "fragile") == {"fatal 1": 2 * run}, 20)
        eventually(lambda run=run: begun(valkey, told) == (2 * run if "shop" in told else 2))
        worker.kill()
        worker = start_worker(shop, **start)
    eventually(lambda: shop.app.dead_letters.count() == 2, 20)
    letters = list(shop.app.dead_letters.newest(9))
    assert {(one.kind, one.reason) for one in letters} == {(Kind.DEAD, Reason.CRASHED)}
    if not isinstance(broker, RabbitMQ):
        assert marks(shop, "ids") == {one.job_id: 2 for one in letters}


def begun(store, pattern: str) -> int:
    """Runs that the store knows of and that have no outcome yet."""
    client = store.client()
    keys = list(client.scan_iter(pattern))
    if pattern.startswith("shop"):
        return sum(int(client.get(key)) for key in keys)
    return sum(client.scard(key) for key in keys)


def test_an_event_of_another_program_reaches_the_subscribers(shop, start_worker, broker):
    """By the exchange on RabbitMQ, in their lists on Valkey; each handling has its derived id."""
    start_worker(shop)
    event = structured(type="shop.sold", data={"number": 5})
    if isinstance(broker, RabbitMQ):
        kind = "application/cloudevents+json"
        put(broker, "shop.sold", event, kind, exchange="shop.topics")
    else:
        for queue in ("shop.book", "shop.audit"):
            put(broker, queue, event)
    eventually(lambda: marks(shop, "book") == {"5": 1})
    eventually(lambda: marks(shop, "audit") == {"Sold 5": 1})
    assert marks(shop, "ids") == {shop.book.handling_id(EVENT_ID): 1}
    put(broker, "shop.book", "<shop.sold><number>6</number></shop.sold>")
    eventually(lambda: marks(shop, "book") == {"5": 1, "6": 1})
    put(broker, "shop.audit", '{"number": 7}')
    eventually(lambda: shop.app.dead_letters.count() == 1)

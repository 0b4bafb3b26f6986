"""Messages of every release, byte for byte: each later one reads them, and this one writes them.

`0.1/<broker>/` holds what 0.1 wrote, with ids and times made the same. A release that changes what
it writes gets a directory of its own, by ``WRITE_GOLDEN=1 pytest tests/compat``; no file is changed
or deleted ever, since what waits in somebody's queue is not.
"""

from __future__ import annotations

import json
import os
import re
from base64 import b64decode, b64encode
from collections import Counter
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from support.process import eventually
from support.servers import RabbitMQ, Server

pytestmark = pytest.mark.brokers("valkey", "rabbitmq")

HERE = Path(__file__).parent
WRITTEN_BY = "0.1"
APP = """
from datetime import UTC, datetime
from pathlib import Path
from umbel import Completed, Event, JobContext, Message, Retry, Step, Umbel

app = Umbel("shop")
MARKS = Path(__file__).parent / "marks"
MARKS.mkdir(exist_ok=True)

def mark(name, text):
    with (MARKS / name).open("a") as file:
        file.write(f"{text!r}\\n")

class Add(Message, name="shop.add", version=1):
    a: int
    text: str
    raw: bytes = b"\\xff"
    at: datetime = datetime(2026, 1, 2, 3, 4, tzinfo=UTC)

class Reserve(Message, name="shop.reserve", version=1):
    article: str

class Sold(Event, name="shop.sold", version=1):
    number: int

@app.job(queue="sums", retry=Retry(delays_s=[3600]))
def add(message: Add, context: JobContext) -> int:
    if message.a < 0 and context.attempt == 1:
        raise ValueError(message.a)
    mark("add", (message.a, message.text, message.raw, message.at.isoformat(), context.attempt))
    return message.a

@app.job(name="told", queue="told")
def told(message: Completed[int]) -> None:
    mark("told", message.result)

@app.job(queue="steps")
def reserve(message: Reserve) -> None:
    mark("reserve", message.article)

@app.job(name="free", queue="steps")
def free(message: Reserve) -> None:
    mark("free", message.article)

order = app.saga("order", [Step(reserve, undo=free)], queue="steps")

@app.subscribe(Sold)
def book(event: Sold) -> None:
    mark("book", event.number)
"""
DOCUMENTS = ("json", "xml", "cloudevents")
_VARYING = re.compile(
    r"(?P<uuid>\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b)"
    r"|(?P<time>\b20\d\d-\d\d-\d\dT[\d:.]+\+00:00)|(?P<origin>\b(gen)?\d+@[\w.-]+)"
)


@pytest.fixture
def shop(write_app):
    """An app with a job, a callback, a saga and a subscriber."""
    return write_app(APP)


def fixed(kind: str, text: str) -> str:
    """The text with ids, times and hosts that are the same in every run, and only here."""
    seen: dict[str, str] = {}
    whose = f"{crc32(f'{WRITTEN_BY} {kind}'.encode()):08x}"

    def stand_in(found: re.Match[str]) -> str:
        if found["uuid"]:
            number = f"{len(seen) + 1:012d}"
            return seen.setdefault(found[0], f"{whose}-0000-4000-8000-{number}")
        if found["time"]:
            return found[0] if found[0].startswith("2026-01-02") else "2026-01-01T00:00:00+00:00"
        return "gen1@host"

    return _VARYING.sub(stand_in, text)


def on_one_level(element: dict[str, Any]) -> str:
    """A message as text in which ids can be found: its body too."""
    body = json.loads(b64decode(element["body"]))
    return json.dumps({**element, "body": body}, indent=1, sort_keys=True, ensure_ascii=False)


def waiting(broker: Server, queue: str) -> dict[str, Any]:
    """The one message of a queue, as it is on the wire."""
    if isinstance(broker, RabbitMQ):
        [one] = eventually(lambda: broker.waiting(queue))
        headers = {name: value for name, value in one.headers.items() if name[:2] != "x-"}
        return {"headers": headers, "body": b64encode(one.body).decode()}
    return json.loads(eventually(lambda: broker.client().rpop(queue)))


def write(shop, start_worker, broker: Server) -> dict[str, dict[str, Any]]:
    """One message of each kind that this release writes."""
    found = {}
    start_worker(shop).stop()  # declares
    shop.add.send(shop.Add(a=1, text="größer & <b>"))
    found["task"] = waiting(broker, "sums")
    shop.app.publish(shop.Sold(number=2))
    found["event"] = waiting(broker, "shop.book")
    shop.order.start(shop.Reserve(article="bike"))
    found["saga"] = waiting(broker, "steps")
    worker = start_worker(shop, queues=["sums"])
    shop.add.send(shop.Add(a=3, text=""), on_success=shop.told)
    found["callback"] = waiting(broker, "told")
    if not isinstance(broker, RabbitMQ):
        shop.add.send(shop.Add(a=-4, text="again"))
        client = broker.client()
        [parked] = eventually(lambda: client.zrange("_umbel.delayed", 0, -1))
        length, _, rest = parked.partition(b" ")[2].partition(b":")
        found["retry"] = json.loads(rest[int(length) :])
    worker.stop()
    return found


def test_this_release_writes_what_it_wrote(shop, start_worker, broker):
    """Header by header: a change is seen here before it is seen on somebody's broker."""
    directory = HERE / WRITTEN_BY / broker.name
    written = {
        name: fixed(name, on_one_level(one))
        for name, one in write(shop, start_worker, broker).items()
    }
    if os.environ.get("WRITE_GOLDEN"):
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in written.items():
            (directory / f"{name}.json").write_text(text + "\n")
    golden = {file.stem: file.read_text().strip() for file in directory.glob("*.json")}
    assert written == golden


def test_what_older_releases_wrote_is_read(shop, start_worker, broker):
    """By a worker, on a real broker: each message comes to what it came to then."""
    worker = start_worker(shop)
    releases = sorted(one for one in HERE.iterdir() if one.name[0].isdigit())
    queues = {"task": "sums", "retry": "sums", "callback": "told", "saga": "steps"}
    queues |= {"event": "shop.book"}
    for release in releases:
        for file in sorted((release / broker.name).glob("*.json")):
            put(broker, queues[file.stem], json.loads(file.read_text()))
        for name in DOCUMENTS:
            put(broker, "sums", (release / "documents" / name).read_bytes())
    of_each = [
        (1, "größer & <b>", b"\xff", "2026-01-02T03:04:00+00:00", 1),
        *((number, "größer", b"\xff", "2026-01-02T03:04:00+00:00", 1) for number in (5, 6, 7)),
    ]
    if not isinstance(broker, RabbitMQ):
        of_each.append((-4, "again", b"\xff", "2026-01-02T03:04:00+00:00", 2))
    many = len(releases)
    expected = Counter(dict.fromkeys(map(repr, of_each), many))
    eventually(lambda: marks(shop, "add") == expected, expected=lambda: str(marks(shop, "add")))
    for name, value in {"told": 3, "book": 2, "reserve": "bike"}.items():
        eventually(lambda name=name, value=value: marks(shop, name) == {repr(value): many})
    # The step is told to a saga that this store never had.
    buried = {letter.job for letter in shop.app.dead_letters.newest(100)}
    assert buried <= {"umbel.saga.order.succeeded"}
    assert worker.running


def put(broker: Server, queue: str, message: dict[str, Any] | bytes) -> None:
    """A message as it was on the wire, or a document."""
    if isinstance(broker, RabbitMQ):
        if isinstance(message, bytes):
            broker.push(queue, message, content_type="")
        else:
            body = json.dumps(message["body"]).encode()
            broker.push(queue, body, headers=message["headers"], content_encoding="utf-8")
        return
    if isinstance(message, dict):
        body = b64encode(json.dumps(message["body"]).encode()).decode()
        message = json.dumps({**message, "body": body}).encode()
    broker.client().lpush(queue, message)


def marks(shop, name: str) -> Counter[str]:
    """What a job noted, and how often."""
    file = shop.MARKS / name
    return Counter(file.read_text().splitlines() if file.exists() else ())

"""The command: what it lists, exports, locks and finds, also in what waits on the brokers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result
from support.npm import installed
from support.process import eventually

from umbel.cli.contracts import contracts

ROOT = Path(__file__).parents[2]
ASYNCAPI = Path(__file__).parent / "asyncapi"
PAGE = ASYNCAPI / "page"  # overrides one package: its next needs a newer Node.js than Debian's

on_both = pytest.mark.brokers("valkey", "rabbitmq")

APP = """
from __future__ import annotations

import datetime
from enum import Enum
from typing import Annotated, Literal

from pydantic import BaseModel, Field, SecretStr
from umbel import Completed, Event, Message, Umbel, WorkQueue, upcast

app = Umbel("shop", {options})

class Size(Enum):
    SMALL = "small"
    LARGE = "large"

class Part(BaseModel):
    "A part, of parts."
    size: Size
    made: datetime.date | None = None
    parts: list[Part] = []
    pair: tuple[int, str] = (1, "a")

class Card(BaseModel):
    kind: Literal["card"]
    number: SecretStr

class Cash(BaseModel):
    kind: Literal["cash"]

class OldOrder(Message, name="shop.order", version=1):
    number: int

class Order(Message, name="shop.order", version=2, aliases=["shop.purchase"]):
    "What a customer wants."
    number: int
    parts: list[Part] = []
    payment: Annotated[Card | Cash, Field(discriminator="kind")] = Cash(kind="cash")

@upcast(OldOrder, to=Order)
def forward(old: OldOrder) -> Order:
    return Order(number=old.number)

class Receipt(Message, name="shop.receipt", version=1):
    text: str

class Ship(Message, name="shop.ship", version=1):
    order: int

class Sold(Event, name="shop.sold", version=1):
    number: int

class Seen(Event, name="shop.seen", version=1):
    number: int

@app.job(queue=WorkQueue("orders", priorities=True))
def order(message: Order) -> Receipt:
    raise NotImplementedError

@app.job(queue=WorkQueue("ships", shards=2), shard_key="order")
def ship(message: Ship) -> None: ...

@app.job(name="shop.told")
def told(message: Completed[Receipt]) -> None: ...

@app.subscribe(Sold)
def book(event: Sold) -> None: ...

@app.subscribe("shop.*", name="audit")
def audit(event: Event) -> None: ...
"""


def command(shop, *arguments: str) -> Result:
    return CliRunner().invoke(contracts, arguments, obj=SimpleNamespace(app=shop.app))


@pytest.fixture
def shop(write_app, app_dir):
    (app_dir / "umbel.toml").touch()
    return write_app(APP.replace("{options}", ""))


def test_they_are_listed_with_who_takes_them(shop):
    """All versions, callbacks and results, and events that nobody here takes."""
    rows = [re.split(r"  +", line) for line in command(shop, "list").output.splitlines()]
    assert ["shop.order", "2", "message", "shop.purchase", "shop.order (orders)"] in rows
    assert ["shop.order", "1 (old)", "message", "shop.purchase", "shop.order (orders)"] in rows
    assert ["shop.order", "result", "shop.order (orders)"] in rows
    assert ["shop.told", "1", "callback", "shop.told (shop)"] in rows
    assert ["shop.seen", "1", "event", "audit (shop.audit)"] in rows
    listed = [json.loads(line) for line in command(shop, "list", "--format", "json").stdout.split()]
    [sold] = [one for one in listed if one["name"] == "shop.sold"]
    assert [by["queue"] for by in sold["consumers"]] == ["shop.book", "shop.audit"]


def test_as_json_schema_they_are_one_document_or_a_file_each(shop, tmp_path):
    """Each has an id; the same contracts are the same bytes."""
    whole = json.loads(command(shop, "export").stdout)
    assert whole["$defs"]["shop.order.v2"]["$id"] == "urn:umbel:shop.order:2"
    assert command(shop, "export", "--out", str(tmp_path / "all.json")).exit_code == 0
    assert json.loads((tmp_path / "all.json").read_text()) == whole
    assert command(shop, "export", "--out", str(tmp_path / "each")).exit_code == 0
    ship = json.loads((tmp_path / "each" / "shop.ship.v1.json").read_text())
    assert ship["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert ship["properties"] == {"order": {"title": "Order", "type": "integer"}}
    assert command(shop, "export").stdout == command(shop, "export").stdout


def test_as_xml_schema_they_are_a_file_each(shop, tmp_path):
    """One document has one namespace, and so one contract."""
    assert (
        command(shop, "export", "--format", "xsd", "--out", str(tmp_path / "each")).exit_code == 0
    )
    text = (tmp_path / "each" / "shop.ship.v1.xsd").read_text()
    assert 'targetNamespace="urn:umbel:shop.ship:1"' in text
    assert command(shop, "export", "--format", "xsd", "--out", "all.xsd").exit_code == 2


def test_the_official_parser_takes_the_asyncapi_document(write_app, tmp_path):
    """Without an error or a warning; and no password is in it."""
    given = 'broker="amqp://someone:hidden@broker.example:5672/shop", store_url="redis://store"'
    shop = write_app(APP.replace("{options}", given))
    os.environ.pop("UMBEL_BROKER_URL")  # put back by write_app's monkeypatch
    file = tmp_path / "shop.json"
    exported = command(shop, "export", "--format", "asyncapi", "--out", str(file))
    assert exported.exit_code == 0, exported.output
    project = installed(ASYNCAPI)
    parsed = subprocess.run(
        ["node", str(ASYNCAPI / "parse.mjs"), str(file)],
        cwd=project,
        capture_output=True,
        text=True,
    )
    assert parsed.returncode == 0, parsed.stdout + parsed.stderr
    operations = json.loads(parsed.stdout)
    assert operations["receive.shop.order"] == "receive"
    assert operations["send.shop.order"] == operations["publish.shop.seen"] == "send"
    text, document = file.read_text(), json.loads(file.read_text())
    assert "hidden" not in text
    assert "someone" not in text
    [server] = document["servers"].values()
    assert server == {"host": "broker.example:5672", "protocol": "amqp", "pathname": "/shop"}
    received = document["operations"]["receive.shop.order"]
    assert len(received["messages"]) == 2
    assert received["reply"]["channel"] == {"$ref": "#/channels/results"}
    topic = document["channels"]["event.shop.sold"]
    assert topic["bindings"]["amqp"]["exchange"]["name"] == "shop.topics"


def test_the_page_of_the_official_generator_shows_the_example(app_dir, tmp_path):
    """Each operation, with its action, its address and its messages."""
    shutil.copy(ROOT / "examples" / "events.py", app_dir)
    file, directory = tmp_path / "events.json", tmp_path / "page"
    export = f"-m celery -A events contracts export --format asyncapi --out {file}"
    exported = subprocess.run([sys.executable, *export.split()], capture_output=True, text=True)
    assert exported.returncode == 0, exported.stderr
    generated = subprocess.run(
        ["node", str(PAGE / "page.mjs"), str(file), str(directory)],
        cwd=installed(PAGE),
        capture_output=True,
        text=True,
    )
    assert generated.returncode == 0, generated.stdout + generated.stderr
    sold, prices = "kiosk.sold.v1", "kiosk.prices.changed.v1"
    assert operations_on((directory / "index.html").read_text()) == {
        "publish.kiosk.sold": ("send", "kiosk.sold", [sold]),
        "publish.kiosk.prices.changed": ("send", "kiosk.prices.changed", [prices]),
        "receive.book": ("receive", "kiosk.book", [sold]),
        "receive.audit": ("receive", "kiosk.audit", [prices, sold]),
        "receive.forget": ("receive", "kiosk.forget", [prices]),
    }


def operations_on(page: str) -> dict[str, tuple[str, str, list[str]]]:
    """What the page's HTML shows, without the document that its scripts carry."""
    body = page.partition('<div id="root">')[2].partition("<script")[0]
    operations = body.partition('<section id="messages"')[0]
    found = {}
    for shown in re.split(r'<li [^>]*id="operation-', operations)[1:]:
        [(action, address)] = re.findall(r'title="(\w+)">\w+</span> <span[^>]*>(.*?)<', shown)
        [name] = re.findall("Operation ID<span[^>]*>(.*?)<", shown)
        found[name] = action, address, re.findall("Message ID<span[^>]*>(.*?)<", shown)
    return found


def test_the_lock_files_of_npm_name_no_registry():
    """A registry is a matter of the machine."""
    for file in ROOT.glob("[te]*/**/package-lock.json"):
        assert "resolved" not in file.read_text()


def test_a_change_is_held_beside_the_lock_file(shop, write_app, app_dir):
    """Compatible ones pass and are to be locked; others fail with a line each, and are refused."""
    missing = command(shop, "check")
    assert missing.exit_code == 1
    assert "there is no lock file: write it by `contracts lock`" in missing.output
    assert command(shop, "lock").exit_code == 0
    file = app_dir / "contracts.lock.json"
    before = file.read_text()
    assert command(shop, "lock").exit_code == 0
    assert file.read_text() == before
    assert command(shop, "check", "--locked").output == f"nothing breaks; compared with {file}\n"

    source = APP.replace("{options}", "")
    wider = write_app(source.replace("    order: int", "    order: int\n    fast: bool = False"))
    checked = command(wider, "check", "--against", str(file))
    assert checked.exit_code == 0
    assert "not in the lock file yet: shop.ship 1 (changed): run `contracts lock`" in checked.output
    assert command(wider, "check", "--locked").exit_code == 1

    broken = write_app(source.replace("    order: int", "    order: int\n    fast: bool"))
    checked = command(broken, "check")
    assert checked.exit_code == 1
    [line] = [
        line for line in checked.output.splitlines() if line.startswith("shop.ship 1: fast: ")
    ]
    assert "give it a default, or make it version 2" in line
    refused = command(broken, "lock")
    assert refused.exit_code == 1
    assert line in refused.output
    assert file.read_text() == before
    assert command(broken, "lock", "--force").exit_code == 0
    assert command(broken, "check").exit_code == 0
    assert "shop.ship 1: fast: is not written" in command(shop, "check").output
    assert file.read_text() != before


def test_what_was_removed_is_allowed_by_its_own_word(shop, write_app):
    """The job is gone, and its messages may not be."""
    command(shop, "lock")
    source = APP.replace("{options}", "")
    start, end = source.index('@app.job(queue=WorkQueue("ships"'), source.index("@app.job(name=")
    fewer = write_app(source[:start] + source[end:])
    checked = command(fewer, "check")
    assert checked.exit_code == 1
    assert "shop.ship 1: nothing reads it any more" in checked.output
    assert command(fewer, "check", "--allow-removed").exit_code == 0
    assert command(fewer, "lock", "--allow-removed").exit_code == 0
    assert command(fewer, "check").exit_code == 0


def test_a_subscription_that_matches_nothing_fails(write_app, app_dir):
    """Nobody would ever call it."""
    (app_dir / "umbel.toml").touch()
    wrong = write_app(APP.replace("{options}", "").replace('"shop.*"', '"shpo.*"'))
    command(wrong, "lock")
    checked = command(wrong, "check")
    assert checked.exit_code == 1
    assert "subscriber audit: 'shpo.*' matches no event that it knows" in checked.output


@on_both
def test_what_waits_is_looked_at_and_stays_as_it_is(shop, write_app, broker, start_worker):
    """In queues, dead letters and, on Valkey, delays: how many would fail, why, in their places."""
    with shop.app.connection_for_write() as connection:
        shop.app.amqp.queues["shop.book"](connection.default_channel).declare()
    worker = start_worker(shop, queues=["orders.high"])
    shop.order.send(shop.Order(number=1), priority="high")  # the job fails
    shop.order.send(shop.Order(number=1), priority="high", delay_s=600)
    for number in range(5):
        shop.order.send(shop.Order(number=number))
    shop.app.publish(shop.Sold(number=1))
    eventually(lambda: shop.app.dead_letters.count() == 1)
    assert command(shop, "lock").exit_code == 0

    def fits() -> bool:
        nonlocal found
        found = command(shop, "check", "--in-flight")
        return "delayed: " in found.output

    found = None
    eventually(fits, 20, lambda: found.output)
    worker.stop()
    assert found.exit_code == 0, found.output
    assert "orders: shop.order 2: 0 of 5 would fail\n" in found.output
    assert "shop.book: shop.sold 1: 0 of 1 would fail\n" in found.output
    assert "dead letters: shop.order 2: 0 of 1 would fail\n" in found.output

    wide, narrow = (
        "    number: int\n    parts",
        "    number: Annotated[int, Field(gt=1)]\n    parts",
    )
    narrower = write_app(APP.replace("{options}", "").replace(wide, narrow))
    found = command(narrower, "check", "--in-flight", "--sample", "5")
    assert found.exit_code == 1
    assert "orders: shop.order 2: 2 of 5 would fail\n" in found.output
    assert "    contract: shop.order: number: Input should be greater than 1\n" in found.output
    assert "dead letters: shop.order 2: 1 of 1 would fail\n" in found.output
    if urlsplit(broker.url).scheme == "redis":
        assert "delayed: shop.order 2: 1 of 1 would fail\n" in found.output
    else:
        assert "delayed: 1 are not looked at: on RabbitMQ that would delay them\n" in found.output
    fewer = command(narrower, "check", "--in-flight", "--sample", "2").output
    looked_at = 2 if urlsplit(broker.url).scheme == "redis" else 0  # or their order would change
    assert f"orders: {looked_at} of 5 looked at" in fewer
    waiting = [json.loads(message.body)[0][0]["number"] for message in broker.waiting("orders")]
    assert waiting == [0, 1, 2, 3, 4]


@pytest.mark.brokers("rabbitmq")
def test_a_queue_that_was_looked_at_too_often_is_left_alone(shop, monkeypatch):
    """RabbitMQ counts each look as a delivery, and gives up a message after a hundred."""
    monkeypatch.setattr("umbel.routing.rabbitmq.peek.MOST_RETURNS", 2)
    shop.order.send(shop.Order(number=1))
    command(shop, "lock")
    for _ in range(2):
        assert "orders: shop.order 2: 0 of 1" in command(shop, "check", "--in-flight").output
    assert "orders: 0 of 1 looked at: a message was given back 2 times already" in (
        command(shop, "check", "--in-flight").output
    )


def test_it_is_a_command_of_celery(shop):
    """Found by its entry point."""
    celery = [sys.executable, "-m", "celery", "-A", shop.__name__, "contracts"]
    done = subprocess.run([*celery, "check"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: ")


def test_the_example_runs(tmp_path, monkeypatch):
    """On an embedded server of its own."""
    shutil.copy(ROOT / "examples" / "versions.py", tmp_path)
    for name in [name for name in os.environ if re.match("UMBEL_(?!TEST)|CELERY_", name)]:
        monkeypatch.delenv(name)
    done = subprocess.run(
        [sys.executable, "versions.py"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "a message of version 1 was done: ['cat.jpg at 320 pixels']\n" in done.stdout
    assert "one of version 2 too: ['cat.jpg at 320 pixels', 'cat.jpg at 640 pixels']\n" in (
        done.stdout
    )


def test_the_snippet_of_the_page_runs():
    """Old messages become new ones."""
    [snippet] = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "contracts.md").read_text(), re.S
    )
    names: dict = {"__name__": "contracts_page"}
    exec(compile(snippet, "contracts.md", "exec"), names)
    assert names["widths"](names["ResizeV1"](source="cat.jpg", width=320)).widths == [320]

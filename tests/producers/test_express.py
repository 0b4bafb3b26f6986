"""The short way out: the same messages as by Celery's, and Celery's wherever it matters."""

from __future__ import annotations

import base64
import json
import time
from contextlib import contextmanager, nullcontext

import pytest
from celery import signals
from celery._state import _task_stack
from celery.app.task import Context
from pydantic import SecretStr

from umbel import ContractError, Failed, JobContext, Message, Umbel
from umbel.jobs.context import current

VARY = {"id", "root_id", "umbel-correlation-id", "umbel-produced-at", "correlation_id"}
VARY |= {"delivery_tag", "timestamp", "clock", "uuid"}
LEFT_OUT = {"argsrepr", "kwargsrepr"}  # Celery repeats these headers among the properties


class Order(Message, name="shop.order", version=3):
    number: int
    names: list[str] = ["ä", "\u2028"]
    token: SecretStr | None = None


class Plain(Message, name="shop.plain", version=1):
    number: int
    share: float = 0.5
    names: list[str] = ["ä", "\u2028"]


@pytest.fixture
def app(app_dir, valkey):
    """An app with a job for each kind of message."""
    app = Umbel("shop", broker=valkey.url, publish_timeout_s=2)

    @app.job(queue="orders", timeout_s=7)
    def order(message: Order) -> None:
        pass

    @app.job
    def plain(message: Plain) -> None:
        pass

    @app.job(name="told")
    def told(message: Failed) -> None:
        pass

    app.finalize()
    yield app
    app.close()


def celerys_way(send):
    """The same call while somebody listens to one of Celery's signals."""
    seen = []

    def listener(sender, headers, **facts):
        seen.append((sender, headers["id"]))

    signals.before_task_publish.connect(listener)
    try:
        receipt = send()
    finally:
        signals.before_task_publish.disconnect(listener)
    assert [job_id for _, job_id in seen] == [receipt.id], "the signal fires, once"


def read(element: bytes, vary: set[str] = VARY) -> dict:
    message = json.loads(element)
    message["body"] = json.loads(base64.b64decode(message["body"]))
    if isinstance(message["body"], dict):
        message["body"] = {k: v for k, v in message["body"].items() if k not in vary}
    for part in ("headers", "properties"):
        message[part] = {k: v for k, v in message[part].items() if k not in vary}
    for name in LEFT_OUT:
        message["properties"].pop(name, None)
    return message


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("shop.plain", Plain(number=1)),
        ("shop.order", Order(number=1)),
        ("shop.order", Order(number=2, token=SecretStr("s3cret"))),
        ("shop.order", {"number": 3}),
    ],
)
@pytest.mark.parametrize("way", ["send", "request"])
def test_both_ways_write_one_message(app, valkey, job, message, way):
    """Headers, properties and body are equal but for ids and times."""
    job, client = app.jobs[job], valkey.client()
    send = getattr(job, way)
    send(message)
    celerys_way(lambda: send(message))
    short, long = (read(one) for one in reversed(client.lrange(job.work_queue.name, 0, -1)))
    assert short == long
    assert "s3cret" not in json.dumps(short["headers"])


@contextmanager
def inside(task):
    """As in a job that a worker runs."""
    request = {"id": "the job's", "root_id": 'the first "%b"', "called_directly": False}
    task.request_stack.push(Context(request))
    _task_stack.push(task)
    token = current.set(JobContext("the job's", correlation_id="all %s"))
    try:
        yield
    finally:
        current.reset(token)
        _task_stack.pop()
        task.request_stack.pop()


@pytest.mark.parametrize("correlation", [{}, {"correlation_id": "100 %"}])
@pytest.mark.parametrize("where", [nullcontext, inside])
def test_both_ways_put_what_varies_into_the_same_places(app, valkey, where, correlation):
    """Ids are whatever their senders say; what made and what follows a message is told too."""
    job, client = app.jobs["shop.plain"], valkey.client()
    heard = client.pubsub()
    heard.psubscribe("*shop.events*")
    heard.get_message(timeout=5)
    named = {"job_id": '"7" \\ %b \u2028', "on_failure": app.jobs["told"], **correlation}

    def send():
        with where(job):
            return job.send(Plain(number=1), **named)

    send()
    celerys_way(send)
    vary = {"umbel-produced-at", "delivery_tag", "timestamp", "clock"}
    elements = reversed(client.lrange("shop", 0, -1))
    short, long = (read(element, vary) for element in elements)
    assert short == long
    assert ("umbel-causation-id" in short["headers"]) is (where is inside)
    short, long = (read(heard.get_message(timeout=5)["data"], vary) for _ in range(2))
    assert short == long


def test_both_ways_tell_flower_of_the_sending(app, valkey):
    """The task-sent event is equal too."""
    heard = valkey.client().pubsub()
    heard.psubscribe("*shop.events*")
    heard.get_message(timeout=5)
    job = app.jobs["shop.plain"]
    job.send(Plain(number=1))
    celerys_way(lambda: job.send(Plain(number=1)))
    short, long = (heard.get_message(timeout=5) for _ in range(2))
    assert short["channel"] == long["channel"] == b"/0.shop.events/task.sent"
    event = json.loads(base64.b64decode(json.loads(short["data"])["body"]))
    assert abs(event["timestamp"] - time.time()) < 60
    assert read(short["data"]) == read(long["data"])


def test_many_are_sent_in_order_each_with_its_receipt(app, valkey):
    """More than go into one write."""
    job = app.jobs["shop.plain"]
    receipts = job.send_many(Plain(number=n) for n in range(2500))
    elements = [json.loads(one) for one in reversed(valkey.client().lrange("shop", 0, -1))]
    assert [one["headers"]["id"] for one in elements] == [receipt.id for receipt in receipts]
    numbers = [json.loads(base64.b64decode(one["body"]))[0][0]["number"] for one in elements]
    assert numbers == list(range(2500))
    tags = {one["properties"]["delivery_tag"] for one in elements}
    assert len(tags) == 2500


@pytest.mark.parametrize("listening", [False, True])
def test_of_many_none_is_sent_if_one_does_not_fit(app, valkey, listening):
    """By either way."""
    job = app.jobs["shop.plain"]
    broken = Plain(number=1)
    broken.names = "no list"

    def listener(**facts):
        pass

    if listening:
        signals.before_task_publish.connect(listener)
    try:
        with pytest.raises(ContractError, match="names"):
            job.send_many([Plain(number=1), broken])
    finally:
        signals.before_task_publish.disconnect(listener)
    assert valkey.client().llen("shop") == 0
    assert job.send_many([]) == []


def test_a_delay_takes_celerys_way(app, valkey):
    """What the short way does not know is not lost."""
    app.jobs["shop.plain"].send(Plain(number=1), delay_s=60, expires_s=90)
    [element] = valkey.client().lrange("shop", 0, -1)
    headers = json.loads(element)["headers"]
    assert headers["eta"]
    assert headers["expires"]

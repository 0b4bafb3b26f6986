"""Jobs: declared, called inline, and what they put on the wire."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from celery import chain, group
from celery.beat import Scheduler, SchedulingError

from umbel import (
    ContractError,
    JobContext,
    Message,
    Receipt,
    Retry,
    StoreRequired,
    Umbel,
    UnknownJob,
    WorkQueue,
)


class Add(Message, name="test.add", version=2):
    """Two numbers."""

    a: int
    b: int = 0


class Sub(Add, name="test.sub", version=1):
    """A class of its own, although its fields would fit."""


on_both = pytest.mark.brokers("valkey", "rabbitmq")


@pytest.fixture
def app(broker) -> Umbel:
    """An app on a broker of its own; no worker."""
    return Umbel("shop", broker=broker.url)


@pytest.fixture
def add(app):
    """Its one job."""

    @app.job(queue="sums", timeout_s=9)
    def add(message: Add) -> int:
        """Add two numbers."""
        return message.a + message.b

    return add


def waiting(valkey, queue: str = "sums") -> list[dict[str, Any]]:
    """The messages in a queue, the newest first."""
    return [json.loads(element) for element in valkey.client().lrange(queue, 0, -1)]


def test_called_inline_a_job_just_runs(app, add):
    """Plain, with a context of its own or a given one, and async."""

    @app.job(name="test.context")
    def with_context(message: Add, context: JobContext) -> str:
        context.progress(1, 2)
        assert not context.cancelled
        return context.job_id

    @app.job(name="test.async")
    async def asynchronous(message: Add) -> int:
        return message.a

    assert add(Add(a=1, b=2)) == 3
    assert with_context(Add(a=1)) == ""
    assert with_context(Add(a=1), JobContext("my-id")) == "my-id"
    assert asyncio.run(asynchronous(Add(a=5))) == 5


def test_declaring_needs_no_broker_and_reads_nothing(monkeypatch):
    """Settings are read when they are needed, so that they may be set after the import."""
    app = Umbel("shop")

    @app.job
    def late(message: Add) -> None: ...

    monkeypatch.setenv("UMBEL_BROKER_URL", "redis://elsewhere:1/2")
    assert app.conf.broker_url == "redis://elsewhere:1/2"


def test_a_function_of_another_form_is_refused(app):
    """With what is expected."""
    with pytest.raises(TypeError, match="takes 0 parameters"):
        app.job(lambda: None)
    with pytest.raises(TypeError, match="no Message class"):

        @app.job
        def untyped(message): ...

    with pytest.raises(TypeError, match="no JobContext"):

        @app.job
        def odd(message: Add, more: int): ...


def test_names_belong_to_one(app, add):
    """One job consumes a contract, and one class has its name."""
    with pytest.raises(ContractError, match="there is a job 'test.add' already"):

        @app.job
        def again(message: Add) -> None: ...

    class Impostor(Message, name="test.add", version=1):
        pass

    with pytest.raises(ContractError, match=r"is the name of .*Add already"):

        @app.job(name="test.other")
        def impostor(message: Impostor) -> None: ...


def test_a_queue_is_declared_once(app):
    """Two declarations that differ are refused; a name that no broker takes too."""

    @app.job(queue=WorkQueue("one", max_deliveries=2))
    def first(message: Add) -> None: ...

    with pytest.raises(ValueError, match="declared twice"):

        @app.job(name="test.second", queue="one")
        def second(message: Add) -> None: ...

    with pytest.raises(ValueError, match="no queue name"):
        WorkQueue("with space")
    with pytest.raises(ValueError, match="0 or more"):
        Retry(delays_s=[-1])


def test_on_the_wire_it_is_a_celery_message_with_our_headers(app, add, valkey):
    """Protocol 2, JSON, one argument; the header table of docs/wire-format.md."""
    receipt = add.send(Add(a=1, b=2), correlation_id="order-7")
    assert isinstance(receipt, Receipt)
    [message] = waiting(valkey)
    headers, body = message["headers"], json.loads(base64.b64decode(message["body"]))
    assert body == [
        [{"a": 1, "b": 2}],
        {},
        {"callbacks": None, "errbacks": None, "chain": None, "chord": None},
    ]
    assert message["content-type"] == "application/json"
    assert (headers["task"], headers["id"]) == ("test.add", receipt.id)
    assert headers["argsrepr"] == "Add(a=1, b=2)"
    assert headers["ignore_result"] is True
    assert {name: value for name, value in headers.items() if name.startswith("umbel-")} == {
        "umbel-contract": "test.add",
        "umbel-version": 2,
        "umbel-correlation-id": "order-7",
        "umbel-tracked": False,
        "umbel-produced-at": headers["umbel-produced-at"],
    }
    assert message["properties"]["delivery_info"] == {"exchange": "", "routing_key": "sums"}


@on_both
def test_every_way_of_sending_is_checked_and_queues_nothing(app, add, broker):
    """Ours and Celery's: a misfit is a `ContractError` before anything is sent."""
    bad = {"a": "x"}
    changed = Add(a=1)
    changed.a = "x"  # type: ignore[assignment]
    ways = [
        lambda: add.send(bad),
        lambda: add.request(bad),
        lambda: add.delay(bad),
        lambda: add.apply_async((bad,)),
        lambda: add.apply_async(kwargs={"message": bad}),
        lambda: add.delay(Add(a=1), Add(a=2)),
        lambda: add.delay(5),
        lambda: app.send_task("test.add", [bad]),
        lambda: chain(add.s(bad), add.s()).apply_async(),
        lambda: group(add.s(bad)).apply_async(),
        lambda: add.s(bad).apply_async(),
        lambda: add.apply_async((bad,), countdown=5, queue="other"),
        lambda: add.send(changed),
        lambda: add.request(Sub(a=1, b=2)),
        lambda: asyncio.run(add.asend(bad)),
        lambda: asyncio.run(add.arequest(bad)),
    ]
    for way in ways:
        with pytest.raises(ContractError, match=r"test\.add"):
            way()
    assert broker.waiting("sums") == []


def test_callers_let_unknown_fields_of_results_through(app):
    """A newer worker may have added one."""

    @app.job(name="test.result-message")
    def job(message: Add) -> list[Add]:
        return [message]

    assert job.decode_result([{"a": 1, "b": 2, "new": True}]) == [Add(a=1, b=2)]


def test_beat_is_checked_too(app, add, valkey):
    """An entry may hold a message or a mapping; a misfit is not queued."""
    app.conf.beat_schedule = {
        "typed": {"task": "test.add", "schedule": 60, "args": (Add(a=1),)},
        "plain": {"task": "test.add", "schedule": 60, "args": ({"a": 2},)},
        "wrong": {"task": "test.add", "schedule": 60, "args": ({"a": "x"},)},
    }
    scheduler = Scheduler(app, lazy=True)
    scheduler.setup_schedule()
    for name in ("typed", "plain"):
        scheduler.apply_async(scheduler.schedule[name], advance=False)
    with pytest.raises(SchedulingError, match=r"test\.add: a: "):
        scheduler.apply_async(scheduler.schedule["wrong"], advance=False)
    bodies = [json.loads(base64.b64decode(message["body"])) for message in waiting(valkey)]
    assert [body[0] for body in bodies] == [[{"a": 2, "b": 0}], [{"a": 1, "b": 0}]]


def test_on_the_wire_a_request_and_its_options(app, add, broker):
    """Tracked, with its limit, its time and its expiry as Celery writes them."""
    handle = add.request(Add(a=1), delay_s=60, expires_s=90, job_id="order-7")
    [message] = broker.waiting("sums")
    headers = message.headers
    assert handle.id == headers["id"] == headers["umbel-correlation-id"] == "order-7"
    assert (headers["umbel-tracked"], headers["ignore_result"]) == (True, False)
    assert headers["timelimit"] == [9, None]
    produced = datetime.fromisoformat(headers["umbel-produced-at"])
    assert produced.utcoffset() == timedelta(0)
    for name, seconds in (("eta", 60), ("expires", 90)):
        after = datetime.fromisoformat(headers[name]) - produced
        assert abs(after - timedelta(seconds=seconds)) < timedelta(seconds=5)


@on_both
def test_celerys_ways_reach_the_jobs_queue(app, add, broker):
    """`delay`, by name, and a job that was declared after something was sent."""
    add.delay({"a": 1})
    app.send_task("test.add", [{"a": 2}])

    @app.job(name="test.late", queue="late")
    def late(message: Add) -> None: ...

    late.send(Add(a=3))
    assert len(broker.waiting("sums")) == 2
    assert len(broker.waiting("late")) == 1


@on_both
def test_a_handle_is_found_again(app, add):
    """By its id, in any process; an unknown id is an error and not for ever pending."""
    handle = add.request(Add(a=1))
    assert app.handle(handle.id).state() == "queued"
    with pytest.raises(UnknownJob, match="nope"):
        app.handle("nope")


def test_tracking_needs_a_store():
    """On RabbitMQ it has to be named; the error says how."""
    app = Umbel("shop", broker="amqp://localhost:1//")

    @app.job
    def lonely(message: Add) -> None: ...

    with pytest.raises(StoreRequired, match="UMBEL_STORE_URL"):
        lonely.request(Add(a=1))

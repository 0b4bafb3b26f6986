"""Whatever arrives, the worker goes on, and every message is accounted for."""

from __future__ import annotations

import base64
import json
import pickle
import subprocess
import sys
import zlib
from collections.abc import Iterator
from itertools import count
from types import ModuleType
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.process import eventually

from umbel.consumers.deadletters import Kind, Reason

APP = """
from pathlib import Path
from umbel import Message, Umbel

app = Umbel("shop")
DONE = Path(__file__).parent / "done"

class Add(Message, name="shop.add", version=1):
    a: int
    b: int

@app.job
def add(message: Add) -> int:
    with DONE.open("a") as file:
        file.write("x")
    return message.a + message.b
"""
GOOD_BODY = json.dumps([[{"a": 1, "b": 2}], {}, None]).encode()
_numbers = count()


@pytest.fixture
def shop(write_app) -> ModuleType:
    """An app with one job."""
    return write_app(APP)


def envelope(
    headers: Any, body: bytes = GOOD_BODY, content_type: Any = "application/json", **more: Any
) -> bytes:
    """A Kombu message; of the headers, a missing id is filled in if it is `...`."""
    if isinstance(headers, dict) and headers.get("id") is ...:
        headers = headers | {"id": f"id-{next(_numbers)}"}
    message = {
        "body": base64.b64encode(body).decode(),
        "content-type": content_type,
        "content-encoding": "utf-8",
        "headers": headers,
        "properties": {
            "body_encoding": "base64",
            "delivery_tag": f"tag-{next(_numbers)}",
            "delivery_info": {"exchange": "", "routing_key": "shop"},
        },
    }
    return json.dumps(message | more).encode()


def a_job(**headers: Any) -> dict[str, Any]:
    """Headers of a good message, with some of them changed."""
    return {"task": "shop.add", "id": ...} | headers


def nested(depth: int) -> bytes:
    """JSON of that depth; Python's own encoder does not get far."""
    return b"[" * depth + b"]" * depth


DEEP = "deep"


def hostile() -> Iterator[tuple[str, bytes]]:
    """Each case by name; none of them can be run."""
    yield "bytes", b"\xff\xfe\x00"
    yield "empty", b""
    yield "xml", b"<add a='1'/>"
    yield "a list", b"[1]"
    yield "null", b"null"
    yield "a plain object", b'{"source": "x"}'
    yield "deep", b"[" * 100_000
    yield "no properties", b'{"body": "", "headers": {}}'
    yield "body is no base64", envelope(a_job()).replace(b'"W1t', b'"!!\\u00e9')
    yield "no headers", envelope(None)
    yield "headers are a list", envelope([1])
    yield "no task", envelope({"id": "x"})
    yield "no id", envelope({"task": "shop.add"})
    yield "id is a number", envelope(a_job(id=5))
    yield "task is a list", envelope(a_job(task=["shop.add"]))
    yield "unknown job", envelope(a_job(task="shop.nope"))
    yield "no JSON", envelope(a_job(), b"\xff")
    yield "body is an object", envelope(a_job(), b"{}")
    yield "body is too short", envelope(a_job(), b"[]")
    yield "pickle", envelope(a_job(), pickle.dumps(1), "application/x-python-serialize")
    yield "unknown type", envelope(a_job(), content_type="application/x-nothing")
    yield "compression lies", envelope(a_job(compression="application/x-gzip"))
    yield "unknown compression", envelope(a_job(compression="zipzap"))
    yield "eta", envelope(a_job(eta="never"))
    yield "expires", envelope(a_job(expires=[1]))
    yield "retries", envelope(a_job(retries="many"))
    yield "timelimit", envelope(a_job(timelimit="x"))
    yield "stamps", envelope(a_job(stamped_headers=5))
    yield "callbacks", envelope(a_job(), b'[[{"a": 1, "b": 2}], {}, {"callbacks": 5}]')
    yield "chain", envelope(a_job(), b'[[{"a": 1, "b": 2}], {}, {"chain": [{"x": 1}]}]')
    yield "breaks the contract", envelope(a_job(), b'[[{"a": "x"}], {}, null]')
    yield "no argument", envelope(a_job(), b"[[], {}, null]")
    yield "two arguments", envelope(a_job(), b'[[{"a": 1, "b": 2}, 3], {}, null]')
    yield "keywords", envelope(a_job(), b'[[], {"a": 1, "b": 2}, null]')
    yield (
        "half a surrogate pair in the message",
        envelope(a_job(), b'[[{"a": "\\ud800"}], {}, null]'),
    )
    for name in ("task", "umbel-produced-at", "x"):
        yield (
            f"half a surrogate pair in {name}",
            envelope(a_job(task="shop.nope") | {name: "\ud800"}),
        )
    yield "half a surrogate pair in the id", envelope(a_job(id="\ud800", task="shop.nope"))
    yield "half a surrogate pair as type", envelope(a_job(), content_type="\ud800")
    yield "a deep message", envelope(a_job(), b'[[{"a": %b}], {}, null]' % nested(900))
    yield "a deep header", envelope(a_job(x=DEEP)).replace(b'"deep"', nested(900))
    yield "a deep header, unknown job", envelope(a_job(x=json.loads(nested(400)), task="shop.nope"))
    yield "an eta beyond the calendar", envelope(a_job(eta="9999-12-31T23:59:59-12:00"))
    yield "an expiry before the calendar", envelope(a_job(expires="0001-01-01T00:00:00+12:00"))
    yield "a negative time limit", envelope(a_job(timelimit=[-1, None]))
    yield "a time limit that is no number", envelope(a_job(timelimit=[float("nan"), None]))
    yield "the body's parts as headers", envelope(a_job(callbacks=5, errbacks=5, chain=5, chord=5))
    yield "a header that hides a method", envelope(a_job(get=5))
    yield "a header that hides an attribute", envelope(a_job(_children=5))
    for text in (b"one", b"another"):
        yield (
            f"an id that comes twice: {text!r}",
            envelope(a_job(id="same", task="shop.nope"), text),
        )


CASES = dict(hostile())


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_every_hostile_message_is_quarantined_with_its_bytes(shop, start_worker, valkey, pool):
    """None ends the worker, none is lost, none is run; each is kept with a reason."""
    worker = start_worker(shop, pool=pool)
    client = valkey.client()
    pid = worker.pid
    for element in CASES.values():
        client.lpush("shop", element)
    assert shop.add.request(shop.Add(a=1, b=2)).result(30) == 3
    eventually(lambda: shop.app.dead_letters.count() == len(CASES), 20)
    letters = list(shop.app.dead_letters.newest(1000))
    assert {letter.kind for letter in letters} == {Kind.QUARANTINE}
    assert all(letter.error for letter in letters)
    assert {Reason.MALFORMED, Reason.UNKNOWN_JOB, Reason.CONTRACT} == {
        letter.reason for letter in letters
    }
    bodies = {letter.body for letter in letters}
    assert {b"\xff\xfe\x00", b"<add a='1'/>", b'{"source": "x"}', pickle.dumps(1)} <= bodies
    assert {b"one", b"another"} <= bodies  # of two messages with one id
    shown = run_celery(shop, "deadletters", "list", "--limit", "1000", "--json").splitlines()
    assert len(shown) == len(CASES)
    assert (worker.running, worker.pid, shop.DONE.read_text()) == (True, pid, "x")
    assert_nothing_waits(client)


def run_celery(shop: ModuleType, *arguments: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "celery", "-A", shop.__name__, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_a_compressed_message_is_read(shop, start_worker, valkey):
    """What looks odd but is right runs: the checks refuse no more than they must."""
    start_worker(shop)
    packed = zlib.compress(GOOD_BODY)
    valkey.client().lpush("shop", envelope(a_job(compression="application/x-gzip"), packed))
    eventually(shop.DONE.exists)
    assert shop.app.dead_letters.count() == 0


# With halves of surrogate pairs, which JSON can spell and UTF-8 cannot.
texts = st.text(max_size=20) | st.just("\ud800")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=8,
)
HEADERS = """
id task retries eta expires timelimit root_id parent_id group shadow argsrepr kwargsrepr
ignore_result stamped_headers stamps replaced_task_nesting compression origin lang umbel-version
umbel-contract umbel-tracked umbel-deliveries umbel-returns umbel-produced-at umbel-correlation-id
umbel-saga
"""
header_names = st.sampled_from(HEADERS.split())
payloads = st.one_of(
    json_values,
    st.tuples(json_values, json_values, json_values).map(list),
    st.tuples(st.lists(json_values, max_size=2), st.just({}), json_values).map(list),
    st.tuples(
        st.just([{"a": 1, "b": 2}]),
        st.just({}),
        st.dictionaries(st.sampled_from(["callbacks", "errbacks", "chain", "chord"]), json_values),
    ).map(list),
)
bodies = st.binary(max_size=50) | payloads.map(lambda value: json.dumps(value).encode())
content_types = st.sampled_from(
    ["application/json", "application/x-python-serialize", "text/plain", "application/data", "", 5]
)
# An `eta` far away is a message that waits for its time.
damaged_headers = st.dictionaries(header_names, json_values, max_size=4).map(
    lambda damage: a_job(**{k: v for k, v in damage.items() if k != "eta" or v is None})
)
elements = st.one_of(
    st.binary(min_size=1, max_size=60),
    json_values.map(lambda value: json.dumps(value).encode()),
    st.builds(envelope, damaged_headers | json_values, bodies, content_types),
    st.builds(
        lambda name, value: json.dumps(json.loads(envelope(a_job())) | {name: value}).encode(),
        st.sampled_from(["properties", "headers", "content-type", "content-encoding", "body"]),
        json_values,
    ),
    st.integers(1, 300).map(lambda cut: envelope(a_job())[:-cut]),
    st.just(None).map(lambda _: envelope(a_job())),
)


def test_hundreds_of_random_messages_are_each_done_or_kept(shop, start_worker, valkey):
    """Done, dead-lettered, quarantined or, when expired, dropped with a log line: none is lost."""
    worker = start_worker(shop, pool="threads", concurrency=4)
    client = valkey.client()
    pid, pushed = worker.pid, 0

    @settings(
        max_examples=40,
        deadline=None,
        database=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )
    @given(st.lists(elements, min_size=10, max_size=20))
    def push(batch: list[bytes]) -> None:
        nonlocal pushed
        client.lpush("shop", *batch)
        pushed += len(batch)

    push()
    assert pushed >= 400
    eventually(lambda: client.llen("shop") == 0, 60, expected="an empty queue")
    assert shop.add.request(shop.Add(a=1, b=2)).result(30) == 3
    eventually(lambda: client.hlen("unacked") == 0, 20, expected="nothing in flight")

    def accounted() -> int:
        done = len(shop.DONE.read_text()) - 1
        dropped = worker.logs().count("Discarding revoked task") + worker.logs().count("] ignored")
        return int(done + shop.app.dead_letters.count() + dropped)

    eventually(lambda: accounted() == pushed, 20, expected=lambda: f"{pushed}, not {accounted()}")
    assert (worker.running, worker.pid) == (True, pid)
    assert "Unrecoverable error" not in worker.logs()


def assert_nothing_waits(client: Any) -> None:
    """Neither ready nor in flight."""
    eventually(lambda: (client.llen("shop"), client.hlen("unacked")) == (0, 0))

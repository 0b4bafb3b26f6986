"""The web producer: most of it as an ASGI application, the whole of it over real HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from httpx_sse import EventSource, aconnect_sse, connect_sse
from support.process import LocalProcess, eventually
from support.servers import claim_port

from umbel.config.errors import BrokerUnavailable

APP = """
import time
from uuid import UUID, uuid4
from pydantic import BaseModel, Field
from umbel import Blob, JobContext, Message, Umbel
from umbel.producers.web import create_app

app = Umbel("shop", publish_timeout_s=2)

class Add(Message, name="shop.add", version=1):
    a: int
    b: int = 0
    nonce: UUID = Field(default_factory=uuid4)

class Sum(Message, name="shop.sum", version=1):
    total: int

@app.job
def add(message: Add) -> Sum:
    \"\"\"Add two numbers.

    They may be negative, but the first.
    \"\"\"
    if message.a < 0:
        raise ValueError("negative")
    return Sum(total=message.a + message.b)

class Copy(Message, name="shop.copy", version=1):
    source: Blob

@app.job
def copy(message: Copy, context: JobContext) -> list[Blob]:
    with message.source.open() as file:
        return [Blob.store(file.read() * 2, "image/png")]

@app.job(name="shop.slow")
def slow(message: Add, context: JobContext) -> None:
    for done in range(1000):
        context.progress(done, 1000, note="on it")
        context.raise_if_cancelled()
        time.sleep(0.02)

class Tree(BaseModel):
    children: list["Tree"] = []

class Plant(Message, name="shop.plant", version=1):
    tree: Tree

@app.job
def plant(message: Plant) -> None: ...

class Hidden(Message, name="shop.hidden", version=1):
    pass

@app.job
def hidden(message: Hidden) -> None: ...

def create():
    return create_app(app, expose=[add, copy, slow, plant], max_upload_bytes=1_000_000)
"""

ADD = "/v1/jobs/shop.add"
JSON_TYPE = {"Content-Type": "application/json"}
PNG = {"Content-Type": "image/png"}


class Client:
    """A synchronous client of an application in this process, all in one event loop."""

    def __init__(self, web: FastAPI, root_path: str = "", surprised: bool = True) -> None:
        self._runner = asyncio.Runner()
        transport = httpx.ASGITransport(web, surprised, root_path)
        self.unawaited = httpx.AsyncClient(transport=transport, base_url="http://web")

    def request(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._runner.run(self.unawaited.request(method, path, **options))

    def get(self, path: str, **options: Any) -> httpx.Response:
        return self.request("GET", path, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return self.request("POST", path, **options)

    def delete(self, path: str) -> httpx.Response:
        return self.request("DELETE", path)

    def together(self, *requests: Any) -> list[httpx.Response]:
        """Answers to unawaited requests, in the order in which they came."""

        async def answers() -> list[httpx.Response]:
            return [await answer for answer in asyncio.as_completed(requests)]

        return self._runner.run(answers())

    def close(self) -> None:
        self._runner.run(self.unawaited.aclose())
        self._runner.close()


@pytest.fixture
def shop(write_app) -> ModuleType:
    """An app with exposed jobs and a hidden one."""
    return write_app(APP)


@pytest.fixture
def http(shop) -> Iterator[Client]:
    """A client of its web service, without a network."""
    client = Client(shop.create())
    yield client
    client.close()


@pytest.fixture
def served(shop, app_dir) -> Iterator[httpx.Client]:
    """A client of its web service as a process of its own."""
    port = claim_port()
    web = LocalProcess(
        name="web",
        command=[
            *(sys.executable, "-m", "uvicorn"),
            *("--factory", f"{shop.__name__}:create", "--port", str(port)),
        ],
        cwd=app_dir,
        ready="Uvicorn running",
    )
    web.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        yield client
    web.close()
    assert "Traceback" not in web.logs(), web.logs()


def problem(response: httpx.Response, status: int) -> dict[str, Any]:
    """An error's document; every error is one."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document: dict[str, Any] = response.json()
    assert document["status"] == status
    assert document["title"]
    return document


def follow(http: Client, address: str) -> list[dict[str, Any]]:
    """The events of a job, to its end."""
    return [event.json() for event in EventSource(http.get(address)).iter_sse()]


def incoming(app_dir: Path) -> list[Path]:
    """Files that are on their way in."""
    return [path for path in app_dir.rglob(".incoming/*") if path.is_file()]


# --- the whole way


def test_a_file_goes_in_and_its_result_out_over_real_http(shop, served, start_worker):
    """Upload, job, events to the end, download: what a client does, on a server process."""
    start_worker(shop)
    data = b"x" * 300_000
    blob = served.post("/v1/uploads", content=data, headers=PNG).json()
    accepted = served.post("/v1/jobs/shop.copy", json={"source": blob})
    assert accepted.status_code == 202
    assert accepted.headers["location"] == accepted.json()["links"]["self"]
    assert accepted.json().keys() == {"id", "name", "state", "links"}
    with connect_sse(served, "GET", accepted.json()["links"]["events"]) as stream:
        events = list(stream.iter_sse())
    assert {event.event for event in events} == {"job"}
    last = events[-1].json()
    assert last == served.get(accepted.headers["location"]).json()
    assert (last["state"], last["attempt"]) == ("succeeded", 1)
    [link] = last["links"]["files"]
    assert served.get(link["href"]).content == data * 2


def test_progress_streams_and_a_client_that_leaves_frees_its_subscription(
    shop, served, start_worker, valkey
):
    """Events while it runs; after DELETE the end is `cancelled`; nobody stays subscribed."""
    start_worker(shop)
    accepted = served.post("/v1/jobs/shop.slow", json={"a": 1}).json()
    location, channel = accepted["links"]["self"], f"shop:job:{accepted['id']}"

    def watchers() -> int:
        return sum(count for _, count in valkey.client().pubsub_numsub(channel))

    with connect_sse(served, "GET", accepted["links"]["events"]) as stream:
        records = (event.json() for event in stream.iter_sse())
        record = next(record for record in records if record["progress"])
        assert record["progress"]["total"] == 1000
        assert record["progress"]["percent"] == record["progress"]["done"] / 10
        assert watchers() == 1
    eventually(lambda: watchers() == 0)
    assert served.delete(location).status_code == 202
    with connect_sse(served, "GET", accepted["links"]["events"]) as stream:
        assert list(stream.iter_sse())[-1].json()["state"] == "cancelled"
    ended = served.delete(location)
    assert (ended.status_code, ended.json()["state"]) == (200, "cancelled")


def test_events_end_when_the_store_goes(served, valkey):
    """The answer has begun, so it ends: no traceback (see `served`), and one warning."""
    accepted = served.post(ADD, json={"a": 1}).json()
    with connect_sse(served, "GET", accepted["links"]["events"]) as stream:
        events = stream.iter_sse()
        assert next(events).json()["state"] == "queued"
        valkey.kill()
        assert list(events) == []
    valkey.restart()


def test_more_followers_than_a_pool_usually_holds(served, valkey):
    """Each has a subscription; the hundredth breaks no other."""
    accepted = served.post(ADD, json={"a": 1}).json()
    limits = httpx.Limits(max_connections=None)

    async def follow_all() -> list[list[str]]:
        async with httpx.AsyncClient(base_url=served.base_url, limits=limits, timeout=20) as client:
            streams = [follow_one(client) for _ in range(150)]
            following = asyncio.gather(*streams)
            channel = f"shop:job:{accepted['id']}"
            redis = valkey.client()
            await asyncio.to_thread(
                eventually, lambda: redis.pubsub_numsub(channel)[0][1] == 150, 15
            )
            assert (await client.delete(accepted["links"]["self"])).status_code == 202
            return await following

    async def follow_one(client: httpx.AsyncClient) -> list[str]:
        async with aconnect_sse(client, "GET", accepted["links"]["events"]) as stream:
            states = [event.json()["state"] async for event in stream.aiter_sse()]
        return states[-1:]

    assert asyncio.run(follow_all()) == [["cancelled"]] * 150


def test_an_upload_that_is_refused_or_cut_off_leaves_nothing(served, app_dir):
    """Too large is answered, not hung up on; a client that is gone leaves no piece of its file."""
    problem(served.post("/v1/uploads", content=(b"x" * 100_000 for _ in range(200))), 413)
    address = (served.base_url.host, served.base_url.port)
    head = "POST /v1/uploads HTTP/1.1\r\nHost: web\r\nContent-Length: {}\r\n{}\r\n"
    with socket.create_connection(address) as waiting:
        waiting.sendall(head.format(9_000_000, "Expect: 100-continue\r\n").encode())
        assert waiting.recv(12) == b"HTTP/1.1 413"
    with socket.create_connection(address) as insisting:
        insisting.sendall(head.format(9_000_000, "").encode() + b"x" * 9_000_000)
        assert insisting.recv(12) == b"HTTP/1.1 413"
    with socket.create_connection(address) as leaving:
        leaving.sendall(head.format(900_000, "").encode() + b"x" * 100)
        eventually(lambda: incoming(app_dir), expected="the upload's beginning")
    eventually(lambda: not incoming(app_dir), expected="its end")


# --- jobs


def test_a_record_says_how_it_ended_and_whether_it_changed(shop, http, start_worker):
    """Events to the end, a record with an ETag, and no event after the last."""
    start_worker(shop)
    location = http.post(ADD, json={"a": 1, "b": 2}).headers["location"]
    assert follow(http, location + "/events")[-1]["result"] == {"total": 3}
    record = http.get(location)
    assert (record.json()["state"], record.json()["result"]) == ("succeeded", {"total": 3})
    for tag in (record.headers["etag"], f'W/{record.headers["etag"]}, "x"', "*"):
        again = http.get(location, headers={"If-None-Match": tag})
        assert (again.status_code, again.content) == (304, b"")
    assert http.get(location, headers={"If-None-Match": '"x"'}).status_code == 200
    seen = {"Last-Event-ID": record.headers["etag"].strip('"')}
    assert http.get(location + "/events", headers=seen).status_code == 204


def test_a_failure_is_seen(shop, http, start_worker):
    """With its error, not with its traceback."""
    start_worker(shop)
    location = http.post(ADD, json={"a": -1}).headers["location"]
    last = follow(http, location + "/events")[-1]
    assert (last["state"], last["error"]) == ("failed", "ValueError: negative")
    assert "Traceback" not in json.dumps(last)


def test_a_job_that_waits_is_cancelled_at_once(http):
    """DELETE says 202 and the new state, then 200."""
    location = http.post(ADD, json={"a": 1}).headers["location"]
    first, second = http.delete(location), http.delete(location)
    assert (first.status_code, first.json()["state"]) == (202, "cancelled")
    assert (second.status_code, second.json()["state"]) == (200, "cancelled")


def test_a_hidden_job_is_not_seen(shop, http):
    """Only what is exposed, also where somebody knows an id."""
    handle = shop.hidden.request(shop.Hidden())
    problem(http.get(f"/v1/jobs/{handle.id}"), 404)
    problem(http.get(f"/v1/jobs/{handle.id}/events"), 404)
    problem(http.delete(f"/v1/jobs/{handle.id}"), 404)
    problem(http.post("/v1/jobs/shop.hidden", json={}), 404)
    assert handle.state() == "queued"


NO_MESSAGES = [
    (b"{", JSON_TYPE, 400),
    (b"", JSON_TYPE, 400),
    (b"[" * 100_000, JSON_TYPE, 400),
    (b'{"a": NaN}', JSON_TYPE, 400),
    (b'{"a": "\\ud800"}', JSON_TYPE, 400),
    (b" " * 2_000_000, JSON_TYPE, 413),
    (b'{"a": 1}', {"Content-Type": "text/plain"}, 415),
    (b'{"a": 1}', {}, 415),
    (b"[1]", JSON_TYPE, 422),
    (b'{"a": "x", "c": 1}', JSON_TYPE, 422),
    (b'{"a": 1}', JSON_TYPE | {"Idempotency-Key": ""}, 422),
]


def test_what_is_no_message_is_refused(http, valkey):
    """A problem says why, and nothing is queued."""
    for body, headers, status in NO_MESSAGES:
        problem(http.post(ADD, content=body, headers=headers), status)
    assert not valkey.client().exists("shop")


def test_a_misfit_names_its_fields(http):
    """Those that are wrong and those that are unknown."""
    errors = problem(http.post(ADD, json={"a": "x", "c": 1}), 422)["errors"]
    assert {error["field"] for error in errors} == {"a", "c"}
    assert all(error["detail"] for error in errors)


# --- idempotency


def test_an_idempotency_key_makes_a_repeat_the_same_job(http, valkey):
    """The same request twice, also at once, is one message; another one with its key is refused."""
    key = {"Idempotency-Key": "order-7"}
    asks = [http.unawaited.post(ADD, json={"a": 1, "b": 2}, headers=key) for _ in range(5)]
    asked = http.together(*asks)
    asked.append(http.post(ADD, json={"b": 2, "a": 1}, headers=key))
    assert {answer.status_code for answer in asked} == {202}
    assert len({answer.headers["location"] for answer in asked}) == 1
    assert valkey.client().llen("shop") == 1
    problem(http.post(ADD, json={"a": 2}, headers=key), 422)
    other = http.post("/v1/jobs/shop.slow", json={"a": 1}, headers=key)
    assert other.headers["location"] != asked[0].headers["location"]
    assert 0 < valkey.client().ttl(valkey.client().keys("shop:idempotency:*")[0]) <= 24 * 3600


def test_a_repeat_after_a_failure_is_sent(shop, http, valkey, monkeypatch):
    """A key stands for a message that was sent, not for one that was tried."""
    key, send = {"Idempotency-Key": "order-8"}, type(shop.app.sender).request

    def fail(*_):
        raise BrokerUnavailable("redis://secret-host")

    monkeypatch.setattr(type(shop.app.sender), "request", fail)
    failed = http.post(ADD, json={"a": 1}, headers=key)
    assert "secret-host" not in problem(failed, 503)["detail"]
    assert failed.headers["retry-after"]
    monkeypatch.setattr(type(shop.app.sender), "request", send)
    assert http.post(ADD, json={"a": 1}, headers=key).status_code == 202
    assert valkey.client().llen("shop") == 1


def test_a_repeat_after_the_outcome_was_forgotten_does_not_run_again(http, valkey):
    """It is told so."""
    key = {"Idempotency-Key": "order-9"}
    job_id = http.post(ADD, json={"a": 1}, headers=key).json()["id"]
    valkey.client().delete(f"shop:job:{job_id}")
    problem(http.post(ADD, json={"a": 1}, headers=key), 410)
    assert valkey.client().llen("shop") == 1


# --- files


def test_a_form_and_a_body_store_the_same(http):
    """201 with the reference and the address; the file may have fields beside it."""
    data = b"x" * 300_000
    stored = http.post("/v1/uploads", content=data, headers=PNG)
    assert stored.status_code == 201
    blob = stored.json()
    assert (blob["size_bytes"], blob["media_type"]) == (300_000, "image/png")
    assert blob["sha256"] == hashlib.sha256(data).hexdigest()
    assert stored.headers["location"] == f"/v1/blobs/{blob['sha256']}"
    file = ("any.png", data, "image/png")
    form = http.post("/v1/uploads", files={"file": file}, data={"note": "hello"})
    assert form.json() == blob
    unsaid = http.post("/v1/uploads", content=data)
    assert unsaid.json() == blob | {"media_type": "application/octet-stream"}


FORM = {"Content-Type": "multipart/form-data; boundary=b"}
PART = b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\nbytes\r\n'


NO_FILES = [
    (b"x" * 1_000_001, PNG, 413),
    (PART[:-7] + b"x" * 2_000_000 + b"\r\n--b--\r\n", FORM, 413),
    (b"--b\r\n\r\n" + b"x" * 2_000_000, FORM, 413),
    (b"x", {"Content-Type": "no type"}, 400),
    (b"x", {"Content-Type": "multipart/form-data"}, 400),
    (b"no form at all", FORM, 400),
    (PART, FORM, 400),  # cut off before its end
    (PART * 2 + b"--b--\r\n", FORM, 400),
    (b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\nv\r\n--b--\r\n', FORM, 400),
]


async def in_pieces(body: bytes, size_bytes: int) -> AsyncIterator[bytes]:
    """A body whose length is not told."""
    for at in range(0, len(body), size_bytes):
        yield body[at : at + size_bytes]


def test_what_is_not_one_file_of_the_size_is_refused(http, app_dir):
    """A problem says why, and nothing of it stays on the disk; told by its length or not."""
    for body, headers, status in NO_FILES:
        problem(http.post("/v1/uploads", content=body, headers=headers), status)
        pieces = in_pieces(body, 50_000)
        problem(http.post("/v1/uploads", content=pieces, headers=headers), status)
    eventually(lambda: not incoming(app_dir))


def test_a_form_is_read_however_it_is_cut(http):
    """Its pieces on the network have nothing to do with its parts."""
    bytewise = in_pieces(PART + b"--b--\r\n", 1)
    stored = http.post("/v1/uploads", content=bytewise, headers=FORM)
    assert stored.json()["sha256"] == hashlib.sha256(b"bytes").hexdigest()


RANGES = [
    ("bytes=2-4", 206, b"234"),
    ("bytes=7-", 206, b"789"),
    ("bytes=-2", 206, b"89"),
    ("bytes=0-", 206, b"0123456789"),
    ("bytes=5-100", 206, b"56789"),
    ("bytes=-100", 206, b"0123456789"),
    ("bytes=4-2", 200, b"0123456789"),
    ("bytes=1-2,4-5", 200, b"0123456789"),
    ("bytes=-", 200, b"0123456789"),
    ("bytes=\xb2-\xb3", 200, b"0123456789"),
    ("lines=1-2", 200, b"0123456789"),
]


def test_a_range_of_a_file(http):
    """RFC 9110, 14: one valid range, or all of it."""
    location = http.post("/v1/uploads", content=b"0123456789").headers["location"]
    for wanted, status, content in RANGES:
        part = http.get(location, headers={"Range": wanted.encode("latin-1")})
        assert (part.status_code, part.content) == (status, content), wanted
        assert part.headers["content-length"] == str(len(content))
        start = b"0123456789".index(content)
        said = f"bytes {start}-{start + len(content) - 1}/10" if status == 206 else None
        assert part.headers.get("content-range") == said, wanted
    changed = {"Range": "bytes=2-4", "If-Range": '"other"'}
    assert http.get(location, headers=changed).status_code == 200


def test_a_range_beyond_the_end_is_told_where_that_is(http):
    """416 with the size; an empty file has no range at all."""
    location = http.post("/v1/uploads", content=b"0123456789").headers["location"]
    empty = http.post("/v1/uploads", content=b"").headers["location"]
    for address, wanted, size in [(location, "10-", 10), (location, "-0", 10), (empty, "0-", 0)]:
        part = http.get(address, headers={"Range": f"bytes={wanted}"})
        problem(part, 416)
        assert part.headers["content-range"] == f"bytes */{size}"
    assert http.get(empty).content == b""


def test_head_says_what_get_would_and_reads_nothing(http, shop, monkeypatch):
    """RFC 9110, 9.3.2; a range is GET's alone."""
    location = http.post("/v1/uploads", content=b"0123456789").headers["location"]
    whole = http.get(location)
    monkeypatch.setattr(type(shop.app.blobs), "chunks", lambda *_: 1 / 0)
    for headers in ({}, {"Range": "bytes=2-4"}):
        head = http.request("HEAD", location, headers=headers)
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers == whole.headers
    assert http.request("HEAD", "/v1/blobs/" + "0" * 64).status_code == 404


def test_a_file_never_changes(http):
    """It may be kept for ever by who asked, and its hash is its tag."""
    location = http.post("/v1/uploads", content=b"x").headers["location"]
    whole = http.get(location)
    assert whole.headers["cache-control"].startswith("private,")
    assert "immutable" in whole.headers["cache-control"]
    cached = http.get(location, headers={"If-None-Match": whole.headers["etag"]})
    assert (cached.status_code, cached.content) == (304, b"")


SHOWN = [
    ("?type=image/jpeg&name=cat.jpg", "image/jpeg", "inline", "cat.jpg"),
    ("?type=image/jpeg&name=../cat.html", "image/jpeg", "inline", "cat.jpg"),
    ("?type=video/mp4&name=a%22%0d%0ab", "video/mp4", "inline", "a%22%0D%0Ab.mp4"),
    ("?type=text/html&name=a.html", "application/octet-stream", "attachment", None),
    ("?type=image/svg%2Bxml", "application/octet-stream", "attachment", None),
    ("", "application/octet-stream", "attachment", None),
]


def test_a_strangers_file_is_never_a_page(http):
    """Few types are shown, whatever the address claims; the rest is saved; all in a sandbox."""
    stored = http.post("/v1/uploads", content=b"<script>", headers={"Content-Type": "text/html"})
    for query, media_type, disposition, name in SHOWN:
        page = http.get(stored.headers["location"] + query)
        assert page.headers["content-type"] == media_type, query
        saved_as = name or stored.json()["sha256"][:16]
        assert page.headers["content-disposition"] == f"{disposition}; filename*=UTF-8''{saved_as}"
        assert page.headers["content-security-policy"] == "sandbox"
        assert page.headers["x-content-type-options"] == "nosniff"


# --- problems, health, documentation


def test_fastapis_own_errors_are_problems(http):
    """Also where no route of ours is reached."""
    for path in ("/nowhere", "/v1/jobs/nope", "/v1/jobs/nope/events", "/v1/blobs/" + "0" * 64):
        problem(http.get(path), 404)
    problem(http.delete("/v1/jobs/nope"), 404)
    refused = http.delete("/v1/uploads")
    problem(refused, 405)
    assert refused.headers["allow"] == "POST"
    misfit = problem(http.get("/v1/blobs/ABC"), 422)
    assert misfit["errors"][0]["field"] == "path.sha256"
    problem(http.get("/v1/blobs/..%2f..%2fetc%2fpasswd"), 404)


def test_what_nobody_foresaw_says_nothing(shop, monkeypatch):
    """500, with the reason in the log and not in the answer."""
    monkeypatch.setattr(type(shop.app.sender), "request", lambda *_: 1 / 0)
    http = Client(shop.create(), surprised=False)
    assert "division" not in json.dumps(problem(http.post(ADD, json={"a": 1}), 500))
    http.close()


def test_the_event_loop_is_free_while_the_broker_hangs(http, valkey):
    """Who needs the broker is told 503 in time; others are answered meanwhile."""
    assert http.get("/readyz").json() == {"status": "ready"}
    valkey.freeze()

    async def often() -> httpx.Response:
        return [await http.unawaited.get("/healthz") for _ in range(50)][-1]

    first, *others = http.together(
        http.unawaited.post(ADD, json={"a": 1}), http.unawaited.get("/readyz"), often()
    )
    assert first.json() == {"status": "ok"}
    details = {answer.url.path: problem(answer, 503)["detail"] for answer in others}
    assert "broker and store" in details["/readyz"]
    assert "Idempotency-Key" in details[ADD]
    assert all(answer.headers["retry-after"] for answer in others)
    valkey.thaw()
    eventually(lambda: http.get("/readyz").status_code == 200)


def test_readiness_comes_and_goes_with_the_broker(http, valkey):
    """A balancer takes it out, and in again; what is asked meanwhile is a 503."""
    location = http.post(ADD, json={"a": 1}).headers["location"]
    valkey.kill()
    problem(http.get("/readyz"), 503)
    problem(http.get(location), 503)
    problem(http.delete(location), 503)
    valkey.restart()
    eventually(lambda: http.get("/readyz").status_code == 200)
    assert http.get(location).json()["state"] == "queued"


def test_without_a_store_it_says_so(write_app, monkeypatch):
    """A broker that cannot be the store, and none named: 503 and which setting is missing."""
    monkeypatch.setenv("UMBEL_BROKER_URL", f"amqp://127.0.0.1:{claim_port()}")
    http = Client(write_app(APP).create())
    for answer in (http.post(ADD, json={"a": 1}), http.get("/v1/jobs/any")):
        assert "UMBEL_STORE_URL" in problem(answer, 503)["detail"]
    assert "store" in problem(http.get("/readyz"), 503)["detail"]
    http.close()


def test_links_are_right_where_it_is_mounted(shop):
    """Under a path of another application, or behind a proxy that strips one."""
    http = Client(shop.create(), root_path="/media")
    accepted = http.post("/media" + ADD, json={"a": 1})
    assert accepted.headers["location"].startswith("/media/v1/jobs/")
    assert http.get(accepted.json()["links"]["self"]).status_code == 200
    stored = http.post("/media/v1/uploads", content=b"x")
    assert http.get(stored.headers["location"]).content == b"x"
    http.close()


def test_the_documentation_shows_the_contracts(http):
    """OpenAPI from the messages, recursive ones too, with a page that needs no network."""
    document = http.get("/openapi.json").json()
    assert "/v1/jobs/shop.hidden" not in document["paths"]
    ask = document["paths"][ADD]["post"]
    assert (ask["summary"], ask["description"]) == (
        "Add two numbers.",
        "They may be negative, but the first.",
    )
    components = document["components"]["schemas"]
    schema = ask["requestBody"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/Add-Input"}
    assert components["Add-Input"]["properties"]["a"]["type"] == "integer"
    given = components["Status"]["properties"]["result"]["anyOf"]
    by_job = {one["title"]: one["allOf"][0] for one in given if "title" in one}
    assert by_job["shop.add"] == {"$ref": "#/components/schemas/Sum-Result"}
    assert components["Sum-Result"]["properties"]["total"]["type"] == "integer"
    references = set(json.dumps(document).split('"#/components/schemas/')[1:])
    assert {reference.partition('"')[0] for reference in references} <= components.keys()
    page = http.get("/docs").text
    assert "https://" not in page
    scripts = [part.partition('"')[0] for part in page.split('src="')[1:]]
    assert scripts
    assert all(http.get(script).status_code == 200 for script in scripts)


def test_a_program_that_only_sends_needs_no_web_server():
    """`umbel.producers` does not import FastAPI, and `umbel` does not either."""
    code = "import sys, umbel, umbel.producers.sender; sys.exit('fastapi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

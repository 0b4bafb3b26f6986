"""The web producer, over real HTTP with a real worker."""

from __future__ import annotations

import hashlib
import json
import socket
import sys
from types import ModuleType

import httpx
import pytest
from httpx_sse import connect_sse
from support.process import LocalProcess

APP = """
import time
from umbel import Blob, JobContext, Message, Umbel
from umbel.producers.web import create_app

app = Umbel("shop")

class Add(Message, name="shop.add", version=1):
    a: int
    b: int = 0

class Sum(Message, name="shop.sum", version=1):
    total: int

@app.job
def add(message: Add) -> Sum:
    \"\"\"Add two numbers.\"\"\"
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

class Hidden(Message, name="shop.hidden", version=1):
    pass

@app.job
def hidden(message: Hidden) -> None: ...

def create():
    return create_app(app, expose=[add, copy, slow], max_upload_bytes=1000_000)
"""


@pytest.fixture
def shop(write_app) -> ModuleType:
    """An app with three exposed jobs and a hidden one."""
    return write_app(APP)


@pytest.fixture
def http(shop, app_dir):
    """A client of a real server process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    uvicorn = [sys.executable, "-m", "uvicorn"]
    web = LocalProcess(
        name="web",
        command=[*uvicorn, "--factory", f"{shop.__name__}:create", "--port", str(port)],
        cwd=app_dir,
        ready="Uvicorn running",
    )
    web.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=20) as client:
        yield client
    web.close()


def problem(response: httpx.Response, status: int) -> dict:
    """An error's document; every error is one."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert document["status"] == status
    assert document["title"]
    return document


def follow(http: httpx.Client, address: str) -> list[dict]:
    """The events of a job, to its end."""
    with connect_sse(http, "GET", address) as stream:
        return [json.loads(event.data) for event in stream.iter_sse()]


def test_a_job_from_asking_to_its_result(shop, http, start_worker):
    """202 with a location, events to the end, the record with an ETag."""
    start_worker(shop)
    accepted = http.post("/v1/jobs/shop.add", json={"a": 1, "b": 2})
    assert accepted.status_code == 202
    location = accepted.headers["location"]
    assert accepted.json()["links"]["self"] == location
    assert follow(http, accepted.json()["links"]["events"])[-1]["result"] == {"total": 3}
    record = http.get(location)
    assert (record.json()["state"], record.json()["result"]) == ("succeeded", {"total": 3})
    again = http.get(location, headers={"If-None-Match": record.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")


def test_a_failure_is_seen(shop, http, start_worker):
    """With its error, not with its traceback."""
    start_worker(shop)
    location = http.post("/v1/jobs/shop.add", json={"a": -1}).headers["location"]
    last = follow(http, location + "/events")[-1]
    assert (last["state"], last["error"]) == ("failed", "ValueError: negative")
    assert "Traceback" not in json.dumps(last)


def test_progress_streams_and_delete_cancels(shop, http, start_worker):
    """Events while it runs; after DELETE the end is `cancelled`."""
    start_worker(shop)
    location = http.post("/v1/jobs/shop.slow", json={"a": 1}).headers["location"]
    with connect_sse(http, "GET", location + "/events") as stream:
        for event in stream.iter_sse():
            record = json.loads(event.data)
            if record["progress"]:
                assert record["progress"]["total"] == 1000
                assert http.delete(location).status_code == 202
                break
    assert follow(http, location + "/events")[-1]["state"] == "cancelled"
    ended = http.delete(location)
    assert (ended.status_code, ended.json()["state"]) == (200, "cancelled")


def test_files_go_in_and_out_by_reference(shop, http, start_worker):
    """As a body or a form; results are linked; ranges and caching work."""
    start_worker(shop)
    data = b"x" * 300_000
    stored = http.post("/v1/uploads", content=data, headers={"Content-Type": "image/png"})
    assert stored.status_code == 201
    blob = stored.json()
    assert (blob["size_bytes"], blob["media_type"]) == (300_000, "image/png")
    assert blob["sha256"] == hashlib.sha256(data).hexdigest()
    form = http.post("/v1/uploads", files={"file": ("any.png", data, "image/png")})
    assert form.json() == blob
    accepted = http.post("/v1/jobs/shop.copy", json={"source": blob}).json()
    last = follow(http, accepted["links"]["events"])[-1]
    [link] = last["links"]["files"]
    whole = http.get(link["href"])
    assert whole.content == data * 2
    assert whole.headers["content-type"] == "image/png"
    assert whole.headers["x-content-type-options"] == "nosniff"
    part = http.get(link["href"], headers={"Range": "bytes=10-19"})
    assert (part.status_code, part.content) == (206, b"x" * 10)
    assert part.headers["content-range"] == "bytes 10-19/600000"
    cached = http.get(link["href"], headers={"If-None-Match": whole.headers["etag"]})
    assert cached.status_code == 304
    problem(http.get(link["href"], headers={"Range": "bytes=600000-"}), 416)


def test_a_strangers_file_is_never_shown_as_a_page(http):
    """Whatever its type claims: a download, in a sandbox."""
    stored = http.post("/v1/uploads", content=b"<script>", headers={"Content-Type": "text/html"})
    page = http.get(stored.headers["location"] + "?type=text/html")
    assert page.headers["content-type"] == "application/octet-stream"
    assert page.headers["content-disposition"].startswith("attachment")
    assert page.headers["content-security-policy"] == "sandbox"


def test_every_error_is_a_problem(http, valkey):
    """Ours and FastAPI's; what does not fit names its fields; nothing was queued."""
    misfit = problem(http.post("/v1/jobs/shop.add", json={"a": "x", "c": 1}), 422)
    assert {line.partition(":")[0] for line in misfit["errors"]} == {"a", "c"}
    problem(http.post("/v1/jobs/shop.add", content=b"{"), 400)
    problem(http.post("/v1/jobs/shop.add", content=b"[" * 100_000), 400)
    problem(http.post("/v1/jobs/shop.add", json=[1]), 422)
    problem(http.post("/v1/jobs/shop.hidden", json={}), 405)
    problem(http.get("/v1/jobs/nope"), 404)
    problem(http.get("/v1/jobs/nope/events"), 404)
    problem(http.delete("/v1/jobs/nope"), 404)
    problem(http.get("/nowhere"), 404)
    problem(http.get("/v1/blobs/" + "0" * 64), 404)
    problem(http.get("/v1/blobs/..%2f..%2fetc%2fpasswd"), 404)
    problem(http.post("/v1/uploads", content=b"x" * 1_000_001), 413)
    problem(http.post("/v1/uploads", content=b"", headers={"Content-Type": "no type"}), 400)
    outside = {"uri": "file:///etc/passwd", "size_bytes": 1, "sha256": "0" * 64}
    assert http.post("/v1/jobs/shop.copy", json={"source": outside}).status_code == 202
    assert valkey.client().llen("shop") == 1


def test_a_hidden_job_is_not_seen(shop, http):
    """Only what is exposed, also where somebody knows an id."""
    handle = shop.hidden.request(shop.Hidden())
    problem(http.get(f"/v1/jobs/{handle.id}"), 404)
    problem(http.delete(f"/v1/jobs/{handle.id}"), 404)


def test_an_idempotency_key_makes_a_repeat_the_same_job(http, valkey):
    """The same request twice is one job; the key with another message is refused."""
    key = {"Idempotency-Key": "order-7"}
    first = http.post("/v1/jobs/shop.add", json={"a": 1}, headers=key)
    second = http.post("/v1/jobs/shop.add", json={"a": 1, "b": 0}, headers=key)
    assert first.headers["location"] == second.headers["location"]
    problem(http.post("/v1/jobs/shop.add", json={"a": 2}, headers=key), 422)
    assert http.post("/v1/jobs/shop.slow", json={"a": 1}, headers=key).status_code == 202


def test_health_is_of_the_process_and_readiness_of_what_it_needs(http, valkey):
    """A balancer takes it out while the broker is away, and in again."""
    assert http.get("/healthz").json() == {"status": "ok"}
    assert http.get("/readyz").json() == {"status": "ready"}
    valkey.kill()
    assert http.get("/healthz").status_code == 200
    assert "broker and store" in problem(http.get("/readyz"), 503)["detail"]
    away = http.post("/v1/jobs/shop.add", json={"a": 1})
    problem(away, 503)
    assert away.headers["retry-after"]
    valkey.restart()
    assert http.get("/readyz").status_code == 200


def test_the_documentation_shows_the_contracts(http):
    """OpenAPI from the messages, and its page without a network."""
    paths = http.get("/openapi.json").json()["paths"]
    assert set(paths) >= {"/v1/jobs/shop.add", "/v1/jobs/shop.copy", "/v1/uploads"}
    assert "/v1/jobs/shop.hidden" not in paths
    ask = paths["/v1/jobs/shop.add"]["post"]
    assert ask["summary"] == "Add two numbers."
    schema = ask["requestBody"]["content"]["application/json"]["schema"]
    assert schema["properties"]["a"]["type"] == "integer"
    page = http.get("/docs").text
    assert "https://" not in page.replace("https://fastapi", "")

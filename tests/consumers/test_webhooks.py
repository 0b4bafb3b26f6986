"""Callbacks to URLs, by real workers to a real HTTPS server: retried, logged, never lost."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from base64 import b64encode
from collections import Counter
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from support.process import eventually

from umbel import Completed, Failed
from umbel.cli.webhooks import webhooks
from umbel.consumers import webhook_log
from umbel.consumers.webhooks import WebhookFailed, WebhookGivenUp, terms, wish_of
from umbel.jobs.callbacks import callback_id
from umbel.jobs.wire import ON_FAILURE, ON_SUCCESS
from umbel.webhooks import verify

pytestmark = pytest.mark.brokers("valkey", "rabbitmq")

OLD, NEW = (f"whsec_{b64encode(bytes([n]) * 32).decode()}" for n in range(2))

APP = """
import os, signal, sys
from pathlib import Path
from pydantic import BaseModel
from umbel import Message, Umbel

app = Umbel("shop")

class Pack(Message, name="shop.pack", version=1):
    order: int

class Parcel(BaseModel):
    grams: int

@app.job
def pack(message: Pack) -> Parcel:
    if message.order < 0:
        raise ValueError("no such order")
    return Parcel(grams=message.order)
"""

DYING = (
    APP
    + """
from umbel.consumers import delivery

tell = delivery.tell_success

def die_once():
    mark = Path(__file__).parent / "died"
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)

def tell_success(*args):
    if os.environ.get("DIES") == "before":
        die_once()
    tell(*args)
    if os.environ.get("DIES") == "after":
        die_once()

delivery.tell_success = tell_success
"""
)


@pytest.fixture
def write_shop(write_app, receiver, monkeypatch):
    """`write_app`, with short pauses, here and for the workers, and the receiver allowed."""
    settings = {
        "WEBHOOK_SECRETS": f"{NEW},{OLD}",
        "WEBHOOK_ALLOW": "127.0.0.1",
        "WEBHOOK_CA_FILE": str(receiver.ca_file),
        "WEBHOOK_DELAYS_S": "0.1,0.2",
        "LEASE_S": "1",
    }
    for name, text in settings.items():
        monkeypatch.setenv(f"UMBEL_{name}", text)
    return write_app


@pytest.fixture
def shop(write_shop):
    """The app above."""
    return write_shop(APP)


def test_success_and_failure_are_posted_signed(shop, start_worker, receiver):
    """By a plain worker of the app; the id follows from the job's, and each secret verifies."""
    start_worker(shop)
    url = receiver.url("/hook?key=geheim")
    both = {"on_success": url, "on_failure": url}
    done = shop.pack.send(shop.Pack(order=7), **both, correlation_id="c1")
    lost = shop.pack.request(shop.Pack(order=-1), **both)
    eventually(lambda: len(receiver.posted) == 2, 20)
    by_id = {one.id: one for one in receiver.posted}
    success, failure = (
        by_id[callback_id(done.id, ON_SUCCESS)],
        by_id[callback_id(lost.id, ON_FAILURE)],
    )
    for secret in (OLD, NEW):
        told = verify(success.body, success.headers, secret, Completed[shop.Parcel], Failed)
        assert (told.result.grams, told.job, told.job_id) == (7, "shop.pack", done.id)
        assert told.correlation_id == "c1"
    told = verify(failure.body, failure.headers, NEW, Completed[shop.Parcel], Failed)
    assert (told.reason, told.error) == ("failed", "ValueError: no such order")
    assert success.headers["content-type"] == "application/json"
    assert json.loads(success.body)["timestamp"].endswith("Z")

    def run(*arguments: str) -> str:
        return CliRunner().invoke(webhooks, arguments, obj=SimpleNamespace(app=shop.app)).output

    eventually(lambda: run("list").count("answered 204") == 2)
    logged = json.loads(run("show", done.id, "--json"))
    assert (logged["webhook_id"], logged["status"], logged["attempt"]) == (success.id, 204, 1)
    assert logged["url"] == receiver.url("/hook?…")
    assert "geheim" not in run("list") + run("show", success.id)
    assert run("show", "nope") == run("list", "--failed") == "no attempts\n"


def test_what_is_not_taken_is_tried_again_until_it_is_given_up(shop, start_worker, receiver):
    """With one id; redirects are not followed, and 410 is the end at once."""
    receiver.answers["/late"] += [500, (503, {"retry-after": "1"}), 200]
    receiver.answers["/moved"].append((302, {"location": receiver.url("/elsewhere")}))
    receiver.answers["/gone"].append(410)
    urls = {path: receiver.url(f"/{path}") for path in ("late", "moved", "gone")}
    urls |= {"closed": "https://127.0.0.1:1/", "foreign": "https://127.0.0.2/"}
    worker = start_worker(shop, pool="threads", concurrency=5)
    sent = {}
    for order, (path, url) in enumerate(urls.items()):
        header = {ON_SUCCESS: {"url": url}}  # as any program can write it, unchecked
        sent[path] = shop.app.send_task("shop.pack", [{"order": order}], headers=header).id
    eventually(lambda: len(receiver.at("/late")) == 3 and shop.app.dead_letters.count() == 4, 40)
    assert {one.id for one in receiver.at("/late")} == {callback_id(sent["late"], ON_SUCCESS)}
    assert len({one.headers["webhook-timestamp"] for one in receiver.at("/late")}) > 1
    assert Counter(one.path for one in receiver.posted) == {"/late": 3, "/moved": 3, "/gone": 1}

    assert "cannot stop a job" not in worker.logs()

    def errors(path: str) -> list[str]:
        found = list(shop.app.webhook_log.find(sent[path]))
        assert [one.attempt for one in found] == list(range(len(found), 0, -1))
        return [one.error for one in reversed(found)]

    eventually(lambda: len(errors("late")) == 3)
    assert errors("late") == ["answered 500", "answered 503", ""]
    assert errors("moved") == ["answered 302"] * 3
    assert errors("gone") == ["answered 410: gone for good"]
    assert all("refused" in error for error in errors("closed"))
    assert len(errors("closed")) == 3
    [refused] = errors("foreign")
    assert refused.startswith("not sent: 'https://127.0.0.2/': the address is not public")
    letters = {one.job_id: one for one in shop.app.dead_letters.find(job="umbel.webhook")}
    assert letters.keys() == {
        callback_id(sent[path], ON_SUCCESS) for path in ("moved", "gone", "closed", "foreign")
    }
    gone = letters[callback_id(sent["gone"], ON_SUCCESS)]
    assert gone.error == "WebhookGivenUp: answered 410: gone for good"
    receiver.answers["/gone"].clear()
    command = [sys.executable, "-m", "celery", "-A", shop.__name__, "deadletters", "replay"]
    done = subprocess.run([*command, gone.id], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    eventually(lambda: len(receiver.at("/gone")) == 2)
    assert len({one.id for one in receiver.at("/gone")}) == 1


@pytest.mark.parametrize("point", ["before", "after"])
def test_a_worker_that_dies_loses_no_webhook(
    write_shop, start_worker, receiver, monkeypatch, point
):
    """Killed between the job's last line and the sending, or between that and the settlement."""
    shop = write_shop(DYING)
    monkeypatch.setenv("DIES", point)
    worker = start_worker(shop, pool="solo")
    sent = shop.pack.send(shop.Pack(order=7), on_success=receiver.url("/"))
    worker.wait()
    worker.start()
    eventually(lambda: len(receiver.posted) == (2 if point == "after" else 1), 20)
    assert {one.id for one in receiver.posted} == {callback_id(sent.id, ON_SUCCESS)}


@pytest.mark.brokers("valkey")
def test_a_worker_that_dies_in_the_middle_of_a_post_posts_again(shop, start_worker, receiver):
    """Under the same id."""
    worker = start_worker(shop)
    receiver.answers["/"] += [lambda _handler: worker.kill(), 204]
    sent = shop.pack.send(shop.Pack(order=7), on_success=receiver.url("/"))
    eventually(lambda: not worker.running, 20)
    worker.close()
    worker.start()
    eventually(lambda: len(receiver.posted) >= 2, 20)
    assert {one.id for one in receiver.posted} == {callback_id(sent.id, ON_SUCCESS)}


def test_a_worker_without_secrets_leaves_it_to_one_that_has_them(shop, start_worker, receiver):
    """It waits in its queue, and the log says for what."""
    worker = start_worker(shop, env={"UMBEL_WEBHOOK_SECRETS": ""})
    shop.pack.send(shop.Pack(order=7), on_success=receiver.url("/"))
    worker.wait_for_log("waits in queue shop.webhooks for a worker with webhook_secrets")
    assert receiver.posted == []
    start_worker(shop, queues=["shop.webhooks"])
    eventually(lambda: len(receiver.posted) == 1, 20)


@pytest.mark.brokers("valkey")
def test_a_worker_without_the_libraries_says_what_to_install(shop, start_worker, app_dir):
    """And leaves the queue alone; its other queues it can serve."""
    lacking = app_dir / f"{shop.__name__}_lean.py"
    lacking.write_text('import sys\nsys.modules["standardwebhooks"] = None\n' + APP)
    command = [sys.executable, "-m", "celery", "-A", lacking.stem, "worker"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ)
    assert done.returncode != 0
    assert "standardwebhooks not installed" in done.stderr
    assert "pip install 'umbel[webhooks]'" in done.stderr
    start_worker(lacking.stem, queues=["shop"])


@pytest.mark.brokers("valkey")
def test_the_pauses_are_the_policys_or_longer_where_a_receiver_asks(shop):
    """Within bounds: nobody can put a callback off for years."""
    policy = terms(shop.app.settings)["retry"]
    assert policy.delay_s(WebhookFailed("answered 500", 500), 1) == 0.1
    assert policy.delay_s(WebhookFailed("answered 503", 503, 30.0), 2) == 30
    assert policy.delay_s(WebhookFailed("answered 503", 503, 1e9), 2) == 6 * 3600
    assert policy.delay_s(WebhookFailed("answered 503", 503, 30.0), 3) is None
    assert policy.delay_s(WebhookGivenUp("answered 410", 410), 1) is None
    now = datetime(2026, 1, 1, tzinfo=UTC)
    assert wish_of({"retry-after": "120"}, now) == 120
    assert wish_of({"retry-after": "Thu, 01 Jan 2026 00:01:00 GMT"}, now) == 60
    assert wish_of({"retry-after": "Wed, 31 Dec 2025 00:01:00 GMT"}, now) == 0
    for nothing in ({}, {"retry-after": "soon"}, {"retry-after": "-5"}):
        assert wish_of(nothing, now) is None


@pytest.mark.brokers("valkey")
def test_the_log_is_bounded(shop, monkeypatch):
    """In number, and in age."""
    about = {"webhook_id": "w", "url": "https://x/", "type": "umbel.failed", "job": "j"}
    when = {"job_id": "1", "attempt": 1, "at": datetime.now(UTC), "duration_s": 0.1}
    log, attempt = shop.app.webhook_log, webhook_log.Attempt(**about, **when)
    monkeypatch.setattr(webhook_log, "MOST", 3)
    monkeypatch.setattr(webhook_log, "_PAGE", 2)
    for number in range(5):
        log.add(attempt.model_copy(update={"attempt": number}))
    assert [one.attempt for one in log.find()] == [4, 3, 2]
    assert 0 < shop.app.store.client.ttl("shop:webhooks") <= webhook_log.OLDEST_S
    monkeypatch.setattr(webhook_log, "OLDEST_S", -60)
    log.add(attempt)
    assert list(log.find()) == []

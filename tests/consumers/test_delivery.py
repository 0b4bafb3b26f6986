"""What ends a delivery, on real workers: each outcome of `umbel.consumers.delivery`."""

from __future__ import annotations

import json
import os
import signal
import threading
from types import ModuleType

import pytest
from support.process import eventually

from umbel import JobCancelled, JobFailed, JobState
from umbel.consumers.deadletters import Kind, Reason

APP = """
import asyncio, json, os, signal, sys, threading, time
from pathlib import Path
from pydantic import SecretStr
from umbel import JobContext, Message, Retry, Umbel

app = Umbel("shop")
MARKS = Path(__file__).parent / "marks"

def mark(what):
    with MARKS.open("a") as file:
        file.write(f"{what}\\n")

class Add(Message, name="shop.add", version=1):
    a: int
    b: int

class Sum(Message, name="shop.sum", version=1):
    total: int

@app.job
def add(message: Add) -> Sum:
    mark(f"add {message.a}")
    return Sum(total=message.a + message.b)

class Fail(Message, name="shop.fail", version=1):
    text: str
    succeed_at: int = 0

@app.job
def fail(message: Fail) -> None:
    raise ValueError(message.text)

@app.job(name="shop.stubborn", retry=Retry(immediate=1, delays_s=[0.3], give_up_on=(KeyError,)))
def stubborn(message: Fail, context: JobContext) -> int:
    mark(f"attempt {context.attempt}")
    if context.attempt != message.succeed_at:
        raise KeyError(message.text) if message.text == "hopeless" else ValueError(message.text)
    return context.attempt

class Kill(Message, name="shop.kill", version=1):
    runs: int

@app.job(max_deliveries=3)
def kill(message: Kill) -> str:
    mark("kill")
    if len(MARKS.read_text().splitlines()) <= message.runs:
        os.kill(os.getpid(), signal.SIGKILL)
    return "survived"

class Wait(Message, name="shop.wait", version=1):
    seconds: float

@app.job(timeout_s=1)
def wait(message: Wait) -> None:
    mark("waiting")
    time.sleep(message.seconds)

@app.job(name="shop.cooperative", timeout_s=1)
def cooperative(message: Wait, context: JobContext) -> None:
    while True:
        context.raise_if_cancelled()
        time.sleep(0.02)

@app.job(name="shop.patient")
def patient(message: Wait, context: JobContext) -> None:
    for done in range(1000):
        context.progress(done, 1000, note="waiting")
        context.raise_if_cancelled()
        time.sleep(0.02)

@app.job(name="shop.async-wait", timeout_s=1)
async def async_wait(message: Wait) -> int:
    await asyncio.sleep(message.seconds)
    return id(asyncio.get_running_loop())

@app.job(name="shop.wrong-result")
def wrong_result(message: Wait) -> int:
    return "not a number"

@app.job(name="shop.greedy")
def greedy(message: Wait) -> None:
    raise MemoryError("too much")

class Login(Message, name="shop.login", version=1):
    password: SecretStr

@app.job(retry=Retry(immediate=1))
def login(message: Login) -> Login:
    mark(message.password.get_secret_value())
    raise RuntimeError("refused")

@app.job(name="shop.echo-login")
def echo(message: Login) -> Login:
    return message

@app.task
def plain(x):
    return x * 2

class Relay(Message, name="shop.relay", version=1):
    a: int

@app.job
def relay(message: Relay, context: JobContext) -> str:
    return add.request(Add(a=message.a, b=1), correlation_id=None).id
"""

POOLS = ("prefork", "threads", "solo")


@pytest.fixture
def shop(write_app) -> ModuleType:
    """The app above, on a Valkey of its own."""
    return write_app(APP)


@pytest.mark.parametrize("pool", POOLS)
def test_a_result_is_typed_in_another_process(shop, start_worker, pool):
    """A job's result comes back as its annotated type; what was sent and forgotten ran too."""
    start_worker(shop, pool=pool)
    shop.add.send(shop.Add(a=7, b=0))
    handle = shop.add.request(shop.Add(a=1, b=2))
    assert handle.result(10) == shop.Sum(total=3)
    assert handle.state() is JobState.SUCCEEDED
    assert shop.app.handle(handle.id).result(1) == shop.Sum(total=3)
    assert shop.MARKS.read_text().splitlines() == ["add 7", "add 1"]


@pytest.mark.parametrize("pool", POOLS)
def test_a_job_that_fails_for_good_is_a_dead_letter(shop, start_worker, pool):
    """Without a policy a failure is final: kept with reason, error, traceback and attempts."""
    start_worker(shop, pool=pool)
    handle = shop.fail.request(shop.Fail(text="no such picture"))
    with pytest.raises(JobFailed, match="ValueError: no such picture"):
        handle.result(10)
    [letter] = shop.app.dead_letters.newest(10)
    assert (letter.kind, letter.reason, letter.attempts) == (Kind.DEAD, Reason.FAILED, 1)
    assert (letter.job, letter.job_id, letter.queue) == ("shop.fail", handle.id, "shop")
    assert letter.error == "ValueError: no such picture"
    assert "raise ValueError(message.text)" in letter.traceback
    assert "umbel/consumers" not in letter.traceback
    assert json.loads(letter.body)[0] == [{"text": "no such picture", "succeed_at": 0}]


def test_retries_follow_the_policy(shop, start_worker):
    """Immediate runs, then delayed ones; the attempt counts them; success ends it."""
    start_worker(shop)
    assert shop.stubborn.request(shop.Fail(text="x", succeed_at=3)).result(10) == 3
    assert shop.MARKS.read_text().splitlines() == ["attempt 1", "attempt 2", "attempt 3"]
    assert shop.app.dead_letters.count() == 0


def test_a_policy_gives_up(shop, start_worker):
    """After the last run, and at once for what no repetition mends."""
    start_worker(shop)
    with pytest.raises(JobFailed, match="ValueError"):
        shop.stubborn.request(shop.Fail(text="x")).result(10)
    with pytest.raises(JobFailed, match="KeyError"):
        shop.stubborn.request(shop.Fail(text="hopeless")).result(10)
    assert sorted(letter.attempts for letter in shop.app.dead_letters.newest(9)) == [1, 3]


def test_a_killed_child_is_replaced_and_its_job_runs_again(shop, start_worker):
    """`kill -9` of a prefork child in mid-job: the job completes in another."""
    worker = start_worker(shop)
    handle = shop.kill.request(shop.Kill(runs=1))
    assert handle.result(30) == "survived"
    assert shop.MARKS.read_text().splitlines() == ["kill"] * 2
    assert worker.running


def test_a_job_that_kills_every_child_is_a_dead_letter(shop, start_worker):
    """At `max_deliveries` runs without an outcome the message is dead-lettered, with the reason."""
    worker = start_worker(shop)
    with pytest.raises(JobFailed, match="SIGKILL"):
        shop.kill.request(shop.Kill(runs=99)).result(60)
    [letter] = shop.app.dead_letters.newest(10)
    assert (letter.kind, letter.reason) == (Kind.DEAD, Reason.CRASHED)
    assert shop.MARKS.read_text().splitlines() == ["kill"] * 3
    assert worker.running
    assert shop.add.request(shop.Add(a=1, b=1)).result(20).total == 2


def test_prefork_kills_a_job_that_runs_too_long(shop, start_worker):
    """`timeout_s` is hard on prefork, for a function that never looks up."""
    start_worker(shop)
    with pytest.raises(JobFailed, match="ran longer than timeout_s=1 and was killed"):
        shop.wait.request(shop.Wait(seconds=60)).result(20)
    [letter] = shop.app.dead_letters.newest(10)
    assert letter.reason is Reason.TIMED_OUT


@pytest.mark.parametrize("pool", POOLS)
def test_an_async_job_is_cancelled_when_its_time_is_over(shop, start_worker, pool):
    """On every pool, and the worker goes on; async jobs share one loop for the process's life."""
    start_worker(shop, pool=pool)
    loops = {shop.async_wait.request(shop.Wait(seconds=0)).result(10) for _ in range(3)}
    assert len(loops) == 1
    with pytest.raises(JobFailed, match="ran longer than timeout_s=1"):
        shop.async_wait.request(shop.Wait(seconds=60)).result(20)
    assert shop.async_wait.request(shop.Wait(seconds=0)).result(10) in loops


@pytest.mark.parametrize("pool", ["threads", "solo"])
def test_elsewhere_a_time_limit_is_cooperative(shop, start_worker, pool):
    """The worker says so at its start, and `context.cancelled` turns true."""
    worker = start_worker(shop, pool=pool)
    worker.wait_for_log("this pool cannot stop a job that runs too long")
    with pytest.raises(JobFailed, match="ran longer than timeout_s=1"):
        shop.cooperative.request(shop.Wait(seconds=0)).result(20)


def test_a_job_cancelled_while_no_worker_was_up_never_runs(shop, start_worker):
    """Cancelling is a stored flag, not a message that somebody has to hear."""
    handle = shop.add.request(shop.Add(a=66, b=2))
    assert handle.cancel() is JobState.CANCELLED
    start_worker(shop)
    assert shop.add.request(shop.Add(a=1, b=2)).result(10).total == 3
    with pytest.raises(JobCancelled):
        handle.result(1)
    assert "add 66" not in shop.MARKS.read_text()


@pytest.mark.parametrize("pool", POOLS)
def test_a_running_job_is_told(shop, start_worker, pool):
    """Progress is seen while it runs; cancel reaches it, and it ends as cancelled."""
    start_worker(shop, pool=pool)
    handle = shop.patient.request(shop.Wait(seconds=0))
    for record in handle.watch(10):
        if record.progress:
            assert record.progress.total == 1000
            assert record.progress.note == "waiting"
            assert handle.cancel() is JobState.RUNNING
            break
    with pytest.raises(JobCancelled):
        handle.result(10)
    assert handle.state() is JobState.CANCELLED
    assert shop.app.dead_letters.count() == 0


def test_what_expires_is_dropped(shop, start_worker):
    """A message that waited longer than `expires_s` is not run, and its record says so."""
    handle = shop.add.request(shop.Add(a=66, b=2), expires_s=0.01)
    start_worker(shop)
    with pytest.raises(JobFailed, match="expired"):
        handle.result(10)
    assert handle.state() is JobState.EXPIRED
    assert not shop.MARKS.exists()


def test_a_delay_holds_a_job_back(shop, start_worker):
    """`delay_s` is a lower bound."""
    start_worker(shop)
    handle = shop.add.request(shop.Add(a=1, b=2), delay_s=1)
    assert handle.result(10).total == 3
    record = handle.record()
    assert (record.updated_at - record.created_at).total_seconds() >= 1


def test_a_result_of_the_wrong_type_is_a_failure(shop, start_worker):
    """The return annotation is part of the contract."""
    start_worker(shop)
    with pytest.raises(JobFailed, match="valid integer"):
        shop.wrong_result.request(shop.Wait(seconds=0)).result(10)


def test_a_memory_error_does_not_end_the_worker(shop, start_worker):
    """Celery's main process re-raises one that a child reports; ours does not get there."""
    worker = start_worker(shop)
    with pytest.raises(JobFailed, match="MemoryError: too much"):
        shop.greedy.request(shop.Wait(seconds=0)).result(10)
    assert shop.add.request(shop.Add(a=1, b=2)).result(10).total == 3
    assert worker.running


def test_secrets_travel_and_are_never_shown(shop, start_worker, valkey):
    """In clear for the job, through a retry too; stars in logs, events and dead letters."""
    worker = start_worker(shop)
    handle = shop.login.request(shop.Login(password="hunter2"))
    with pytest.raises(JobFailed, match="refused"):
        handle.result(10)
    assert shop.MARKS.read_text().splitlines() == ["hunter2"] * 2
    echoed = shop.echo.request(shop.Login(password="hunter2")).result(10)
    assert echoed.password.get_secret_value() == "hunter2"
    [letter] = shop.app.dead_letters.newest(10)
    assert letter.shown == "Login(password=SecretStr('**********'))"
    assert b"hunter2" in letter.body
    assert "hunter2" not in worker.logs()
    assert "**********" in worker.logs()


def test_plain_tasks_and_chains_live_beside_jobs(shop, start_worker):
    """`@app.task` is Celery's as ever; a chain's next job gets the last one's result."""
    start_worker(shop)
    assert shop.plain.delay(21).get(timeout=10) == 42
    assert shop.add.delay({"a": 1, "b": 2}).get(timeout=10) == {"total": 3}
    chained = shop.echo.s(shop.Login(password="x")) | shop.echo.s()
    assert chained.apply_async().get(timeout=10) == {"password": "x"}


def test_what_a_job_sends_was_caused_by_it(shop, start_worker, valkey):
    """Correlation is inherited, causation is the sender's id."""
    worker = start_worker(shop)
    handle = shop.relay.request(shop.Relay(a=1), correlation_id="order-7")
    child = handle.result(10)
    assert shop.app.handle(child).result(10).total == 2
    worker.kill()
    shop.relay.send(shop.Relay(a=1))
    shop.relay.request(shop.Relay(a=1), correlation_id="order-8")
    headers = [json.loads(one)["headers"] for one in valkey.client().lrange("shop", 0, -1)]
    assert headers[0]["umbel-correlation-id"] == "order-8"
    assert headers[1]["umbel-correlation-id"] == headers[1]["id"]
    assert "umbel-causation-id" not in headers[0]


def test_a_newer_version_waits_for_a_newer_worker(shop, start_worker, valkey):
    """What only a newer worker knows goes back, counted, and is quarantined in the end."""
    shop.add.send(shop.Add(a=1, b=2))
    client = valkey.client()
    message = json.loads(client.rpop("shop"))
    message["headers"]["umbel-version"] = 2
    message["headers"]["umbel-returns"] = 120
    client.lpush("shop", json.dumps(message))
    start_worker(shop)
    eventually(lambda: shop.app.dead_letters.count() == 1)
    [letter] = shop.app.dead_letters.newest(10)
    assert (letter.kind, letter.reason) == (Kind.QUARANTINE, Reason.TOO_NEW)
    message["headers"]["umbel-returns"] = 0
    client.lpush("shop", json.dumps(message))
    eventually(lambda: client.hlen("unacked") == 1)  # waits for its time in this release
    assert shop.app.dead_letters.count() == 1
    assert not shop.MARKS.exists()


def test_a_copy_of_a_job_that_has_ended_is_dropped(shop, start_worker):
    """A send that names its job may be repeated: it runs once."""
    start_worker(shop)
    for _ in range(2):
        shop.add.request(shop.Add(a=5, b=0), job_id="order-7").result(10)
        shop.add.send(shop.Add(a=5, b=0), job_id="order-7")
    assert shop.add.request(shop.Add(a=1, b=2)).result(10).total == 3
    assert shop.MARKS.read_text().splitlines() == ["add 5", "add 1"]


def test_a_child_killed_from_outside_loses_nothing(shop, start_worker):
    """The same for a signal that no job asked for."""
    worker = start_worker(shop)
    handle = shop.patient.request(shop.Wait(seconds=0))
    eventually(lambda: handle.progress() is not None)
    [child] = worker.children()
    os.kill(child.pid, signal.SIGKILL)
    eventually(lambda: handle.state() is JobState.RETRYING or handle.record().attempt, 20)
    handle.cancel()
    with pytest.raises(JobCancelled):
        handle.result(30)


def test_flower_sees_progress_and_stars(shop, start_worker):
    """Events carry names, states, progress and arguments; secrets are stars in all of them."""
    events: list[dict] = []
    with shop.app.connection_for_read() as connection:
        receiver = shop.app.events.Receiver(connection, handlers={"*": events.append})
        listening = threading.Thread(target=receiver.capture, kwargs={"limit": None})
        listening.start()
        start_worker(shop)
        with pytest.raises(JobFailed):
            shop.login.request(shop.Login(password="hunter2")).result(10)
        shop.echo.request(shop.Login(password="hunter2")).result(10)
        handle = shop.patient.request(shop.Wait(seconds=0))
        eventually(lambda: any(event["type"] == "task-progress" for event in events))
        handle.cancel()
        eventually(lambda: any(event["type"] == "task-revoked" for event in events))
        receiver.should_stop = True
        listening.join(10)
    said = repr(events)
    assert "hunter2" not in said
    assert "Login(password=SecretStr('**********'))" in said
    kinds = {event["type"] for event in events}
    assert kinds >= {"task-sent", "task-received", "task-started", "task-retried", "task-failed"}
    [progress, *_] = [event for event in events if event["type"] == "task-progress"]
    assert progress["result"].endswith("% waiting")

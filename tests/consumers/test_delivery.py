"""What ends a delivery, on real workers: each outcome of `umbel.consumers.delivery`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from types import ModuleType

import pytest
from support.process import eventually

from umbel import JobCancelled, JobFailed, JobState
from umbel.consumers.deadletters import Kind, Reason
from umbel.routing.valkey.scripts import split_claim

APP = """
import asyncio, json, os, signal, sys, threading, time
from pathlib import Path
from pydantic import SecretStr, field_validator
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

@app.job(name="shop.sleep")
def sleep(message: Wait) -> None:
    mark("sleeping")
    time.sleep(message.seconds)

@app.job(name="shop.blocks-once", queue="rare")
def blocks_once(message: Wait) -> str:
    mark("blocks")
    if len(MARKS.read_text().splitlines()) == 1:
        time.sleep(message.seconds)
    return "done"

class Odd(Message, name="shop.odd", version=1):
    x: int

    @field_validator("x")
    @classmethod
    def _fails(cls, x: int) -> int:
        if os.environ.get("IN_WORKER"):
            raise LookupError(f"no {x} here")
        return x

@app.job
def odd(message: Odd) -> None:
    mark("odd")

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

@app.job(name="shop.untyped")
def untyped(message: Add) -> dict[str, int]:
    return {"total": message.a + message.b}

@app.job(name="shop.echo-login")
def echo(message: Login) -> Login:
    return message

@app.task
def plain(x):
    return x * 2

class Relay(Message, name="shop.relay", version=1):
    a: int

@app.job(name="shop.elsewhere", queue="elsewhere")
def elsewhere(message: Add) -> None:
    pass

@app.job
def relay(message: Relay, context: JobContext) -> str:
    return elsewhere.request(Add(a=message.a, b=1)).id
"""

POOLS = ("prefork", "threads", "solo")
on_both = pytest.mark.brokers("valkey", "rabbitmq")


@pytest.fixture
def shop(write_app) -> ModuleType:
    """The app above, on a Valkey of its own."""
    return write_app(APP)


@on_both
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


@on_both
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


@on_both
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


@on_both
def test_a_killed_child_is_replaced_and_its_job_runs_again(shop, start_worker):
    """`kill -9` of a prefork child in mid-job: the job completes in another."""
    worker = start_worker(shop)
    handle = shop.kill.request(shop.Kill(runs=1))
    assert handle.result(30) == "survived"
    assert shop.MARKS.read_text().splitlines() == ["kill"] * 2
    assert worker.running


@on_both
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


@on_both
def test_prefork_kills_a_job_that_runs_too_long(shop, start_worker):
    """`timeout_s` is hard on prefork, for a function that never looks up."""
    start_worker(shop)
    with pytest.raises(JobFailed, match="ran longer than timeout_s=1 and was killed"):
        shop.wait.request(shop.Wait(seconds=60)).result(20)
    [letter] = shop.app.dead_letters.newest(10)
    assert letter.reason is Reason.TIMED_OUT


@on_both
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


@on_both
def test_a_job_cancelled_while_no_worker_was_up_never_runs(shop, start_worker):
    """Cancelling is a stored flag, not a message that somebody has to hear."""
    handle = shop.add.request(shop.Add(a=66, b=2))
    assert handle.cancel() is JobState.CANCELLED
    start_worker(shop)
    assert shop.add.request(shop.Add(a=1, b=2)).result(10).total == 3
    with pytest.raises(JobCancelled):
        handle.result(1)
    assert "add 66" not in shop.MARKS.read_text()


@on_both
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


@on_both
def test_what_expires_is_dropped(shop, start_worker):
    """A message that waited longer than `expires_s` is not run, and its record says so."""
    handle = shop.add.request(shop.Add(a=66, b=2), expires_s=0.01)
    start_worker(shop)
    with pytest.raises(JobFailed, match="expired"):
        handle.result(10)
    assert handle.state() is JobState.EXPIRED
    assert not shop.MARKS.exists()


@on_both
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


@pytest.mark.parametrize("pool", POOLS)
def test_a_memory_error_does_not_end_the_worker(shop, start_worker, pool):
    """Celery's main process re-raises one that a child reports; ours does not get there."""
    worker = start_worker(shop, pool=pool)
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
    worker.wait_for_log("**********")
    assert "hunter2" not in worker.logs()
    for arguments in ("list", "list --json", f"show {handle.id}"):
        listing = run_celery(shop, "deadletters", *arguments.split())
        assert "refused" in listing
        assert "hunter2" not in listing


def marks(shop: ModuleType) -> list[str]:
    """What the jobs have marked so far, each whole."""
    return shop.MARKS.read_text().splitlines() if shop.MARKS.exists() else []


def run_celery(shop: ModuleType, *arguments: str) -> str:
    """What the command prints."""
    command = [sys.executable, "-m", "celery", "-A", shop.__name__, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@on_both
def test_plain_tasks_and_chains_live_beside_jobs(shop, start_worker):
    """`@app.task` is Celery's as ever; a chain's next job gets the last one's result."""
    start_worker(shop)
    assert shop.plain.delay(21).get(timeout=10) == 42
    assert shop.add.delay({"a": 1, "b": 2}).get(timeout=10) == {"total": 3}
    chained = shop.echo.s(shop.Login(password="x")) | shop.echo.s()
    assert chained.apply_async().get(timeout=10) == {"password": "x"}


def test_a_misfit_in_a_chain_leaves_the_finished_job_succeeded(shop, start_worker):
    """The follow-up is quarantined: the design, section 2."""
    start_worker(shop)
    chained = (shop.untyped.s({"a": 1, "b": 2}) | shop.echo.s()).apply_async()
    assert shop.app.handle(chained.parent.id).result(10) == {"total": 3}
    assert [letter.job for letter in shop.app.dead_letters.newest(10)] == ["shop.echo-login"]
    with pytest.raises(JobFailed, match="ContractError"):
        shop.app.handle(chained.id).result(10)


@on_both
def test_what_a_job_sends_was_caused_by_it(shop, start_worker, broker):
    """Correlation is inherited, causation is the sender's id."""
    start_worker(shop, queues=["shop"])  # so that what it sends stays in its queue
    named = shop.relay.request(shop.Relay(a=1), correlation_id="order-7")
    nameless = shop.relay.request(shop.Relay(a=1))
    children = [named.result(10), nameless.result(10)]
    shop.elsewhere.send(shop.Add(a=1, b=1))
    first, second, outside = [message.headers for message in broker.waiting("elsewhere")]
    assert [first["id"], second["id"]] == children
    assert first["umbel-correlation-id"] == "order-7"
    assert first["umbel-causation-id"] == named.id
    assert second["umbel-correlation-id"] == second["umbel-causation-id"] == nameless.id
    assert outside["umbel-correlation-id"] == outside["id"]
    assert "umbel-causation-id" not in outside


def test_a_newer_version_waits_for_a_newer_worker(shop, write_app, start_worker, valkey):
    """What only a newer worker knows goes back, counted; one runs it, else it is quarantined."""

    def shop_of_version(version: int) -> ModuleType:
        return write_app(APP.replace('"shop.add", version=1', f'"shop.add", version={version}'))

    shop.add.send(shop.Add(a=1, b=2))
    client = valkey.client()
    message = json.loads(client.rpop("shop"))
    message["headers"]["umbel-version"] = 2
    message["headers"]["umbel-returns"] = 120
    client.lpush("shop", json.dumps(message))
    old = start_worker(shop)
    eventually(lambda: shop.app.dead_letters.count() == 1)
    [letter] = shop.app.dead_letters.newest(10)
    assert (letter.kind, letter.reason) == (Kind.QUARANTINE, Reason.TOO_NEW)
    message["headers"]["umbel-returns"] = 0
    client.lpush("shop", json.dumps(message))

    def returned() -> bool:
        parked = [one.partition(b" ")[2] for one in client.zrange("_umbel.delayed", 0, -1)]
        waiting = [json.loads(split_claim(one)[1])["headers"] for one in parked]
        return [one.get("umbel-returns") for one in waiting] == [1]

    eventually(returned)
    assert shop.app.dead_letters.count() == 1
    assert not shop.MARKS.exists()
    old.stop()
    newer = shop_of_version(2)
    start_worker(newer)
    eventually(lambda: marks(newer) == ["add 1"], 20, expected="a run in the newer worker")


@on_both
def test_a_copy_of_a_job_that_has_ended_is_dropped(shop, start_worker):
    """A send that names its job may be repeated: it runs once."""
    start_worker(shop)
    for _ in range(2):
        shop.add.request(shop.Add(a=5, b=0), job_id="order-7").result(10)
        shop.add.send(shop.Add(a=5, b=0), job_id="order-7")
    assert shop.add.request(shop.Add(a=1, b=2)).result(10).total == 3
    assert shop.MARKS.read_text().splitlines() == ["add 5", "add 1"]


@on_both
def test_a_child_killed_from_outside_loses_nothing(shop, start_worker):
    """The same for a signal that no job asked for."""
    worker = start_worker(shop)
    handle = shop.blocks_once.request(shop.Wait(seconds=60))
    eventually(lambda: marks(shop) == ["blocks"])
    [child] = worker.children()
    os.kill(child.pid, signal.SIGKILL)
    assert handle.result(30) == "done"
    assert shop.MARKS.read_text().splitlines() == ["blocks"] * 2
    assert handle.record().attempt == 1  # a run without an outcome is not an attempt of the job's


def test_a_time_limit_may_come_from_the_sender(shop, start_worker):
    """Celery's `time_limit`, on a job without `timeout_s`: a failure, and the place is free."""
    start_worker(shop)
    sent = shop.sleep.apply_async(({"seconds": 60},), time_limit=1)
    with pytest.raises(JobFailed, match="ran longer than timeout_s=1 and was killed"):
        shop.app.handle(sent.id).result(20)
    [letter] = shop.app.dead_letters.newest(10)
    assert letter.reason is Reason.TIMED_OUT
    assert shop.add.request(shop.Add(a=1, b=2)).result(20).total == 3


@pytest.mark.parametrize("pool", POOLS)
def test_a_validator_that_fails_is_a_broken_contract(shop, start_worker, pool):
    """Whatever it raises: the message is quarantined, the job is not run."""
    start_worker(shop, pool=pool, env={"IN_WORKER": "1"})
    with pytest.raises(JobFailed, match="LookupError: no 7 here"):
        shop.odd.request(shop.Odd(x=7)).result(10)
    [letter] = shop.app.dead_letters.newest(10)
    assert (letter.kind, letter.reason) == (Kind.QUARANTINE, Reason.CONTRACT)
    assert not shop.MARKS.exists()


@pytest.mark.parametrize("pool", POOLS)
def test_an_errback_that_cannot_be_sent_leaves_the_worker_whole(shop, start_worker, pool):
    """The job's end stays, both are kept, and its place in the pool is free again."""
    worker = start_worker(shop, pool=pool)
    sent = shop.fail.apply_async(({"text": "x"},), link_error=shop.add.s({"a": 1}))
    with pytest.raises(JobFailed, match="ValueError: x"):
        shop.app.handle(sent.id).result(10)
    assert shop.add.request(shop.Add(a=1, b=2)).result(10).total == 3
    kept = {(letter.job, letter.kind) for letter in shop.app.dead_letters.newest(10)}
    assert kept == {("shop.fail", Kind.DEAD), ("shop.add", Kind.QUARANTINE)}
    assert worker.running


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

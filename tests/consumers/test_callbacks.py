"""Callbacks: told once the job has ended, and never lost."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from support.process import eventually

from umbel import Completed, ContractError, Failed, Message, Umbel
from umbel.jobs.callbacks import callback_id
from umbel.jobs.wire import ON_FAILURE, ON_SUCCESS

pytestmark = pytest.mark.brokers("valkey", "rabbitmq")

APP = """
import json, os, signal, time
from pathlib import Path
from umbel import Completed, Failed, JobContext, Message, Retry, Umbel

app = Umbel("shop")
MARKS = Path(__file__).parent / "marks"

def mark(**what):
    file = os.open(MARKS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, (json.dumps(what) + "\\n").encode())
    os.close(file)

class Pack(Message, name="shop.pack", version=1):
    order: int

class Parcel(Message, name="shop.parcel", version=1):
    grams: int

@app.job
def pack(message: Pack) -> Parcel:
    return Parcel(grams=message.order)

@app.job(name="shop.clumsy", retry=Retry(immediate=1))
def clumsy(message: Pack, context: JobContext) -> Parcel:
    if message.order == context.attempt:
        return Parcel(grams=0)
    raise ValueError("dropped it")

@app.job(name="shop.slow", timeout_s=0.3)
def slow(message: Pack) -> Parcel:
    time.sleep(60)

@app.job(name="shop.deadly", max_deliveries=2)
def deadly(message: Pack) -> Parcel:
    os.kill(os.getpid(), signal.SIGKILL)

@app.job(name="shop.packed", queue="told")
def packed(message: Completed[Parcel], context: JobContext) -> None:
    mark(id=context.job_id, grams=message.result.grams, **message.model_dump(exclude={"result"}))

@app.job(name="shop.failed", queue="told")
def failed(message: Failed, context: JobContext) -> None:
    mark(id=context.job_id, **message.model_dump())
"""


@pytest.fixture
def shop(write_app):
    """The app above."""
    return write_app(APP)


def told(shop) -> list[dict]:
    """What the callbacks have noted."""
    lines = shop.MARKS.read_text().splitlines() if shop.MARKS.exists() else []
    return [json.loads(line) for line in lines]


def test_success_is_told_with_the_result(shop, start_worker):
    """By each way of sending, tracked or not, also after a retry."""
    start_worker(shop)
    sent = shop.pack.send(shop.Pack(order=7), on_success=shop.packed, on_failure=shop.failed)
    handle = shop.pack.request(shop.Pack(order=8), on_success=shop.packed, correlation_id="c1")
    late = shop.pack.send(shop.Pack(order=9), on_success=shop.packed, delay_s=0.5)
    again = shop.clumsy.send(shop.Pack(order=2), on_success=shop.packed)
    eventually(lambda: len(told(shop)) == 4)
    by_job = {one["job_id"]: one for one in told(shop)}
    assert by_job.keys() == {sent.id, handle.id, late.id, again.id}
    assert [by_job[one.id]["grams"] for one in (sent, handle, late, again)] == [7, 8, 9, 0]
    assert by_job[handle.id]["correlation_id"] == "c1"
    assert by_job[sent.id]["id"] == callback_id(sent.id, ON_SUCCESS)
    assert by_job[sent.id]["job"] == "shop.pack"


@pytest.mark.parametrize(
    ("job", "reason", "error"),
    [
        ("clumsy", "failed", "ValueError: dropped it"),
        ("slow", "timed-out", "TimeoutError: ran longer than timeout_s=0.3"),
        ("deadly", "crashed", "WorkerLostError"),
    ],
)
def test_failure_is_told_once_the_job_is_given_up(shop, start_worker, job, reason, error):
    """Whoever notices: the child, or the main process."""
    start_worker(shop)
    sent = getattr(shop, job).send(
        shop.Pack(order=0), on_success=shop.packed, on_failure=shop.failed
    )
    eventually(lambda: told(shop), 20)
    [one] = told(shop)
    assert (one["job_id"], one["reason"]) == (sent.id, reason)
    assert error in one["error"]
    assert one["id"] == callback_id(sent.id, ON_FAILURE)
    assert shop.app.dead_letters.count() == 1


def test_a_worker_that_dies_loses_no_callback(shop, start_worker):
    """Killed again and again: every job is told of, and its copies share an id."""
    workers = [start_worker(shop, env={"UMBEL_LEASE_S": "1"}) for _ in range(2)]
    sent = {
        shop.pack.send(shop.Pack(order=number), on_success=shop.packed).id for number in range(200)
    }
    for turn in range(4):
        eventually(lambda turn=turn: len(told(shop)) >= 30 * (turn + 1), 30)
        worker = workers[turn % 2]
        worker.kill()
        eventually(lambda worker=worker: not (worker.running or worker.members()))
        worker.start()
    eventually(lambda: {one["job_id"] for one in told(shop)} == sent, 40)
    ids = Counter(one["id"] for one in told(shop))
    assert ids.keys() == {callback_id(id, ON_SUCCESS) for id in sent}


@pytest.mark.brokers("valkey")
def test_what_does_not_fit_is_refused_at_once():
    """At send, or at the declaration."""
    app = Umbel("shop", broker="redis://localhost:1")

    class Pack(Message, name="shop.pack", version=1):
        pass

    @app.job
    def pack(message: Pack) -> int:
        return 1

    @app.job(name="of-text")
    def of_text(message: Completed[str]) -> None: ...

    with pytest.raises(ContractError, match=r"of-text takes Completed\[str\].* returns int"):
        pack.send(Pack(), on_success=of_text)
    with pytest.raises(ContractError, match="on_failure= takes a job whose message is Failed"):
        pack.send(Pack(), on_failure=of_text)
    with pytest.raises(ContractError, match="on_success= takes a job whose message is Completed"):
        pack.send(Pack(), on_success=print)
    with pytest.raises(ContractError, match="give this one a name="):

        @app.job
        def nameless(message: Failed) -> None: ...

"""Sagas: all is done or all is undone, wherever a process dies."""

from __future__ import annotations

import asyncio
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from typing import ClassVar

import pytest
from support.process import eventually

from umbel import (
    ContractError,
    Failed,
    JobContext,
    JobState,
    Message,
    SagaFailed,
    SagaState,
    Step,
    StoreRequired,
    Umbel,
    UnknownJob,
)
from umbel.jobs.saga import UnknownStep

pytestmark = pytest.mark.brokers("valkey", "rabbitmq")

# Effects are keyed by the job's id, as a web service keeps them by its idempotency key; `crash`
# kills its process the first time that the saga whose id names that point gets there.
APP = """
import os, signal, sqlite3, time
from pathlib import Path
from umbel import JobContext, Message, Retry, Step, Umbel

app = Umbel("shop")
HERE = Path(__file__).parent

class Order(Message, name="shop.order", version=1):
    before: list[str] = []  # the jobs that fail before they have done anything
    after: list[str] = []  # the jobs that fail when all is done
    slow: bool = False

def ledger():
    database = sqlite3.connect(HERE / "ledger", isolation_level=None, timeout=60)
    database.execute("CREATE TABLE IF NOT EXISTS effects (saga, job, id UNIQUE)")
    return database

def crash(point, saga):
    if saga.endswith(f"/{point}") and "KILL" in os.environ:
        try:
            (HERE / saga.replace("/", " ")).touch(exist_ok=False)
        except FileExistsError:
            return
        os.kill(os.getpid(), signal.SIGKILL)

def effect(name, order, context):
    crash(f"{name}.before", context.saga)
    while order.slow and name == "reserve" and not (HERE / "go").exists():
        context.raise_if_cancelled()
        time.sleep(0.05)
    if name in order.before and not (HERE / "repaired").exists():
        raise ValueError("out of order")
    with_key = (context.saga, name, context.job_id)
    ledger().execute("INSERT OR IGNORE INTO effects VALUES (?, ?, ?)", with_key)
    crash(f"{name}.after", context.saga)
    if name in order.after:
        raise ValueError("too late")

def job(name, **options):
    @app.job(name=name, **options)
    def run(order: Order, context: JobContext) -> str:
        effect(name, order, context)
        return f"{name} done"
    return run

reserve, charge, ship = job("reserve"), job("charge"), job("ship")
release, recall = job("release"), job("recall")
refund = job("refund", retry=Retry(immediate=1))
steps = [Step(reserve, undo=release), Step(charge, undo=refund), Step(ship, undo=recall)]
order = app.saga("order", steps=steps)
"""

# Apart: whoever listens to these signals sends another way.
CRASHES = """
from celery import signals

@signals.before_task_publish.connect
def before_publish(body, headers, **_):
    sending("unsent", body, headers)

@signals.after_task_publish.connect
def after_publish(body, headers, **_):
    sending("sent", body, headers)

def sending(when, body, headers):
    of = body[0][0].get("job")  # a callback says of which job it tells
    crash(f"{of}.told-{when}" if of else f"{headers['task']}.{when}", headers["umbel-saga"])

@signals.task_prerun.connect
def before_run(task, args, **_):
    if "job" in args[0]:
        crash(f"{args[0]['job']}.heard", task.request.get("umbel-saga"))

@signals.task_postrun.connect
def after_run(task, args, **_):
    if "job" in args[0]:
        crash(f"{args[0]['job']}.moved", task.request.get("umbel-saga"))
"""

FORTH = ["reserve", "charge", "ship"]
BACK = ["recall", "refund", "release"]
MOMENTS = ["before", "after", "told-unsent", "told-sent", "heard", "moved", "unsent", "sent"]


@pytest.fixture
def shop(write_app):
    """The app above."""
    return write_app(APP)


def effects(shop, saga) -> list[str]:
    """What came of a saga, in order."""
    query = "SELECT job FROM effects WHERE saga = ? ORDER BY rowid"
    return [name for (name,) in shop.ledger().execute(query, [f"order/{saga}"])]


def points(jobs) -> list[str]:
    """Where a process can die; the first job is sent by the test itself."""
    found = [f"{job}.{moment}" for job, moment in product(jobs, MOMENTS)]
    return [point for point in found if point not in {"reserve.unsent", "reserve.sent"}]


def test_a_kill_anywhere_leaves_all_done_or_all_undone(write_app, start_worker):
    """Each moment of each step and each compensation, forth and back; each effect once."""
    shop = write_app(APP + CRASHES)
    start_worker(shop, concurrency=4, env={"KILL": "1"})
    forth = [shop.order.start(shop.Order(), saga_id=f"1/{point}") for point in points(FORTH)]
    broken = shop.Order(after=["ship"])
    back = [shop.order.start(broken, saga_id=f"2/{point}") for point in points(FORTH + BACK)]
    for handles, state, expected in [
        (forth, SagaState.SUCCEEDED, FORTH),
        (back, SagaState.UNDONE, FORTH + BACK),
    ]:
        for saga in handles:
            eventually(lambda saga=saga: saga.state().final, 60, saga.record)
            assert saga.state() is state, saga.record()
            assert effects(shop, saga.id) == expected, saga.record()
            assert (shop.HERE / f"order {saga.id.replace('/', ' ')}").exists(), "nobody was killed"


def test_workers_that_are_killed_leave_all_done_or_all_undone(shop, start_worker):
    """Whole machines, at any moment: fifty sagas, five kills."""
    env = {"UMBEL_LEASE_S": "1", "UMBEL_MAX_DELIVERIES": "9"}
    workers = [start_worker(shop, concurrency=2, env=env) for _ in range(2)]
    orders = [shop.Order(), shop.Order(after=["ship"]), shop.Order(before=["charge"])]
    sagas = [shop.order.start(orders[number % 3]) for number in range(50)]

    def ended() -> int:
        return sum(saga.state().final for saga in sagas)

    for turn in range(5):
        eventually(lambda turn=turn: ended() >= 8 * turn, 60)
        worker = workers[turn % 2]
        worker.kill()
        eventually(lambda worker=worker: not worker.members())
        worker.start()
    eventually(lambda: ended() == 50, 60, lambda: str([saga.record() for saga in sagas]))
    undone = ["reserve", "refund", "release"]
    expected = [(SagaState.SUCCEEDED, FORTH), (SagaState.UNDONE, FORTH + BACK)]
    expected.append((SagaState.UNDONE, undone))
    for number, saga in enumerate(sagas):
        assert (saga.state(), effects(shop, saga.id)) == expected[number % 3], saga.record()


def test_a_copy_of_a_step_that_comes_late_is_not_run(shop, start_worker):
    """Its worker died after telling that it failed, before the outcome was written."""
    saga = shop.order.start(shop.Order())
    job_id = saga.steps()[0].job_id
    told = Failed(job="reserve", job_id=job_id, reason="failed", error="no", correlation_id="")
    for _ in range(2):
        shop.order.told[1](told, JobContext(saga=f"order/{saga.id}"))
    start_worker(shop)
    with pytest.raises(SagaFailed, match="undone: reserve: no"):
        saga.result(30)
    assert effects(shop, saga.id) == ["release"]


def test_who_tells_of_a_saga_that_nobody_knows_is_a_dead_letter(shop, start_worker):
    """It has ended long ago, or the message is a stranger's."""
    start_worker(shop)
    told = Failed(job="reserve", job_id="1", reason="failed", error="no", correlation_id="")
    shop.order.told[1].send(told)
    [letter] = eventually(lambda: list(shop.app.dead_letters.find()), 30)
    assert "no saga '' is known" in letter.error


def test_a_handle_shows_the_whole(shop, start_worker):
    """Each step with its state, its jobs, its runs and its error; also for the event loop."""
    start_worker(shop, concurrency=2)
    good = shop.order.start(shop.Order(), saga_id="17")
    bad = asyncio.run(shop.order.astart(shop.Order(before=["charge"])))
    assert good.result(30).result(shop.ship) == "ship done"
    with pytest.raises(SagaFailed, match="undone: charge: ValueError: out of order") as failed:
        asyncio.run(shop.order.handle(bad.id).aresult(30))
    assert (failed.value.state, failed.value.step) == ("undone", "charge")
    record = bad.record()
    assert [(step.name, step.state, step.attempts) for step in record.steps] == [
        ("reserve", "undone", 1),
        ("charge", "undone", 1),
        ("ship", "waiting", 0),
    ]
    assert record.steps[1].error == "ValueError: out of order"
    assert (record.steps[0].undo_attempts, record.correlation_id) == (1, bad.id)
    assert shop.app.handle(record.steps[0].undo_id).state() is JobState.SUCCEEDED
    assert '"failed_step":"charge"' in record.model_dump_json()
    with pytest.raises(LookupError, match="charge has no result"):
        shop.order._run(record).result(shop.charge)


def test_starting_again_is_harmless(shop, start_worker):
    """As long as it is known, by whoever; another message under the same id is an error."""
    for _ in range(3):
        shop.order.start(shop.Order(), saga_id="17")
    start_worker(shop)
    shop.order.handle("17").result(30)
    again = shop.order.start(shop.Order(), saga_id="17")
    assert again.state() is SagaState.SUCCEEDED
    assert effects(shop, "17") == FORTH
    with pytest.raises(ContractError, match="saga order 17 was started with another message"):
        shop.order.start(shop.Order(slow=True), saga_id="17")
    with pytest.raises(ValueError, match="expected 1 to 200 characters"):
        shop.order.start(shop.Order(), saga_id="")
    with pytest.raises(ContractError, match="extra"):
        shop.order.start({"extra": 1})


def test_a_record_is_kept_until_the_end_and_a_while(shop, start_worker, valkey):
    """For ever as long as the saga runs, then ``result_ttl_s``."""
    saga, client = shop.order.start(shop.Order()), valkey.client()
    assert client.ttl(f"shop:saga:order/{saga.id}") == -1
    start_worker(shop)
    saga.result(30)
    assert 3000 < client.ttl(f"shop:saga:order/{saga.id}") <= 3600


def test_a_compensation_that_fails_is_a_dead_letter_and_its_replay_goes_on(shop, start_worker):
    """Retried by its policy first; nothing before it is undone until it is."""
    start_worker(shop)
    saga = shop.order.start(shop.Order(after=["ship"], before=["refund"]))
    with pytest.raises(SagaFailed, match="is stuck: ship: .*; undoing charge: ValueError: out of"):
        saga.result(30)
    assert effects(shop, saga.id) == [*FORTH, "recall"]
    step = saga.steps()[1]
    assert (step.name, step.state, step.undo_attempts) == ("charge", "stuck", 2)
    shipped, refunded = shop.app.dead_letters.find(oldest_first=True)
    assert (refunded.job_id, refunded.attempts) == (step.undo_id, 2)

    (shop.HERE / "repaired").touch()
    [refused] = shop.app.dead_letters.replay(shipped.id)
    assert "saga order/" in refused.problem
    assert "no longer waits for it" in refused.problem
    [sent] = shop.app.dead_letters.replay(refunded.id)
    assert not sent.problem
    eventually(lambda: saga.state() is SagaState.UNDONE, 30, saga.record)
    assert effects(shop, saga.id) == FORTH + BACK


def test_a_compensation_whose_dead_letter_is_gone_can_be_resumed(shop, start_worker):
    """The handle sends it once more, under the same id."""
    start_worker(shop)
    saga = shop.order.start(shop.Order(before=["ship", "refund"]))
    eventually(lambda: saga.state() is SagaState.STUCK, 30, saga.record)
    shop.app.dead_letters.discard(job="refund")
    assert saga.cancel() is SagaState.STUCK
    (shop.HERE / "repaired").touch()
    saga.resume()
    eventually(lambda: saga.state() is SagaState.UNDONE, 30, saga.record)
    assert effects(shop, saga.id) == ["reserve", "charge", *BACK]
    assert saga.resume() is SagaState.UNDONE


def test_a_cancelled_saga_is_undone(shop, start_worker):
    """Whether its step waits, runs and notices, or runs to its end."""
    waits = shop.order.start(shop.Order())
    assert waits.cancel() is SagaState.RUNNING
    start_worker(shop, concurrency=2)
    runs = shop.order.start(shop.Order(slow=True))
    eventually(lambda: shop.app.handle(runs.steps()[0].job_id).state() is JobState.RUNNING, 30)
    asyncio.run(runs.acancel())
    (shop.HERE / "go").touch()
    for saga in (waits, runs):
        with pytest.raises(SagaFailed, match="is undone: cancelled"):
            saga.result(30)
        assert effects(shop, saga.id) in (["release"], ["reserve", "release"])
    assert effects(shop, waits.id) == ["release"]
    assert waits.cancel() is SagaState.UNDONE


def test_a_step_that_is_cancelled_by_its_own_id_is_undone(shop, start_worker):
    """By our handle or by Celery's revoke: a saga does not wait for what never comes."""
    ours, celerys = shop.order.start(shop.Order()), shop.order.start(shop.Order(slow=True))
    shop.app.handle(ours.steps()[0].job_id).cancel()
    start_worker(shop, concurrency=2)
    job_id = celerys.steps()[0].job_id
    eventually(lambda: shop.app.handle(job_id).state() is JobState.RUNNING, 30)
    shop.app.control.revoke(job_id, terminate=True, signal="SIGKILL")
    for saga in (ours, celerys):
        with pytest.raises(SagaFailed, match="is undone: reserve: (cancelled|terminated)"):
            saga.result(30)
        assert effects(shop, saga.id) == ["release"]


# Steps with messages of their own, of what the saga and earlier steps say.
TRAVEL = """
import os
from pathlib import Path
import httpx
from umbel import JobContext, Message, Retry, SagaRun, Step, Umbel

app = Umbel("travel", namespace="travel")
BANK, HERE = os.environ.get("BANK", ""), Path(__file__).parent

class Trip(Message, name="travel.trip", version=1):
    nights: int
    card: str

class Book(Message, name="travel.book", version=1):
    nights: int

class Cancel(Message, name="travel.cancel", version=1):
    room: int | None

class Pay(Message, name="travel.pay", version=1):
    card: str
    room: int
    euros: int

@app.job
def book(message: Book) -> int:
    if message.nights == 13:
        raise ValueError("no such room")
    return 100 + message.nights

@app.job
def cancel(message: Cancel) -> None:
    (HERE / "cancelled").write_text(str(message.room))

@app.job(retry=Retry(immediate=3))
def pay(message: Pay, context: JobContext) -> str:
    return bank(message, "pay", context)

@app.job(name="travel.repay", retry=Retry(immediate=3))
def repay(message: Pay, context: JobContext) -> str:
    return bank(message, "repay", context)

def bank(message, what, context):
    sent = {"card": message.card, "euros": message.euros}
    answer = httpx.post(f"{BANK}/{what}", json=sent, headers={"Idempotency-Key": context.job_id})
    return answer.raise_for_status().text

def to_book(run: SagaRun[Trip]) -> Book:
    if run.message.nights == 99:
        raise RuntimeError("a mistake in the code")
    return Book(nights=run.message.nights)

def to_cancel(run: SagaRun[Trip]) -> Cancel:
    if run.message.nights == 98 and not (HERE / "repaired").exists():
        raise RuntimeError("another mistake")
    return Cancel(room=run.result(book) if run.done(book) else None)

def to_pay(run: SagaRun[Trip]) -> Pay:
    return Pay(card=run.message.card, room=run.result(book), euros=run.message.nights and 500)

def broken(run: SagaRun[Trip]) -> Pay:
    return Pay(card=run.message.card, room=run.result(book), euros="many")

booking = Step(book, undo=cancel, message=to_book, undo_message=to_cancel)
trip = app.saga("travel.trip", [booking, Step(pay, undo=repay, message=to_pay)], message=Trip)
wrong = app.saga("travel.wrong", [booking, Step(pay, message=broken)], message=Trip)
"""


class Bank(BaseHTTPRequestHandler):
    """Keeps answers by key, as payment services do; its first answer to each key is lost."""

    done: ClassVar[dict[str, str]] = {}
    asked: ClassVar[list[str]] = []

    def do_POST(self) -> None:
        """One request."""
        key = f"{self.path} {self.headers['Idempotency-Key']}"
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(key)
        if body["card"] == "empty" and self.path == "/pay":
            self.send_error(402)
            return
        answer = self.done.setdefault(key, f"{self.path} {body['euros']}")
        if self.asked.count(key) > 1:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer.encode())

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def travel(write_app, start_worker, monkeypatch):
    """The app above with its worker, and a web service."""
    Bank.done, Bank.asked = {}, []
    with ThreadingHTTPServer(("127.0.0.1", 0), Bank) as server:
        threading.Thread(target=server.serve_forever).start()
        monkeypatch.setenv("BANK", f"http://127.0.0.1:{server.server_port}")
        module = write_app(TRAVEL, "travel")
        start_worker(module)
        yield module
        server.shutdown()


def test_a_step_that_calls_a_web_service_has_its_effect_once(travel):
    """The answer was lost, so it asks again with the same key; and what it returns goes on."""
    saga = travel.trip.start(travel.Trip(nights=2, card="full"))
    done = saga.result(30)
    assert (done.result(travel.book), done.result(travel.pay)) == (102, "/pay 500")
    assert done.message == travel.Trip(nights=2, card="full")
    key = f"/pay {done.job_id(travel.pay)}"
    assert Bank.asked == [key, key]
    assert list(Bank.done) == [key]


def test_messages_are_made_of_what_is_known(travel):
    """Of the saga's message and of results, for the undo too; there may be none."""
    with pytest.raises(SagaFailed, match="undone: travel.pay: HTTPStatusError: .*402"):
        travel.trip.start(travel.Trip(nights=2, card="empty")).result(30)
    assert (travel.HERE / "cancelled").read_text() == "102"
    [repaid] = Bank.done
    assert repaid.startswith("/repay ")
    with pytest.raises(SagaFailed, match="undone: travel.book: ValueError: no such room"):
        travel.trip.start(travel.Trip(nights=13, card="full")).result(30)
    assert (travel.HERE / "cancelled").read_text() == "None"


def test_a_message_that_cannot_be_made_undoes_what_is_done(travel):
    """At the start it is the caller's error; the step itself has not begun and is not undone."""
    with pytest.raises(RuntimeError, match="a mistake"):
        travel.trip.start(travel.Trip(nights=99, card="full"), saga_id="1")
    with pytest.raises(UnknownJob, match="no saga 'travel.trip/1' is known"):
        travel.trip.handle("1").state()
    saga = travel.wrong.start(travel.Trip(nights=2, card="full"))
    with pytest.raises(SagaFailed, match="pay: the message cannot be made: .*euros: Input should"):
        saga.result(30)
    assert [step.state for step in saga.steps()] == ["undone", "waiting"]
    assert (travel.HERE / "cancelled").read_text() == "102"


def test_an_undo_message_that_cannot_be_made_waits_for_the_repair(travel):
    """Stuck, with a dead letter of the saga's own job, whose replay goes on."""
    saga = travel.wrong.start(travel.Trip(nights=98, card="full"))
    with pytest.raises(SagaFailed, match="stuck: .*undoing travel.book: .* another mistake"):
        saga.result(30)
    letters = travel.app.dead_letters
    [letter] = eventually(lambda: list(letters.find()))
    assert letter.job == "umbel.saga.travel.wrong.succeeded"
    (travel.HERE / "repaired").touch()
    [sent] = letters.replay(letter.id)
    assert not sent.problem
    eventually(lambda: saga.state() is SagaState.UNDONE, 30, saga.record)
    assert (travel.HERE / "cancelled").read_text() == "198"


@pytest.mark.brokers("valkey")
def test_a_step_that_newer_code_lacks_is_an_error_that_says_so(write_app, broker):
    """A saga goes on by the steps that it was started with."""
    saga = write_app(TRAVEL, "travel")
    handle = saga.trip.start(saga.Trip(nights=2, card="full"))
    less = write_app(TRAVEL.replace(", Step(pay, undo=repay, message=to_pay)]", "]"), "travel")
    record = less.app.saga_records.move(
        f"travel.trip/{handle.id}", lambda now: now.tell_succeeded(now.steps[0].job_id, 102, 1)
    )
    with pytest.raises(UnknownStep, match="waits for the step 'travel.pay', which this code does"):
        less.trip.go_on(record)


@pytest.mark.brokers("valkey")
def test_without_a_store_nothing_is_sent():
    """The declaration reads nothing; the start says what to set."""
    app = Umbel("shop", broker="amqp://localhost:1")

    class Order(Message, name="shop.order", version=1):
        pass

    @app.job
    def reserve(message: Order) -> None: ...

    saga = app.saga("order", [Step(reserve)])
    with pytest.raises(StoreRequired, match="a saga needs a state store.*UMBEL_STORE_URL"):
        saga.start(Order())


@pytest.mark.brokers("valkey")
def test_what_does_not_fit_is_refused_at_the_declaration():
    """With what to do."""
    app = Umbel("shop", broker="redis://localhost:1")

    class Order(Message, name="shop.order", version=1):
        pass

    class Bill(Message, name="shop.bill", version=1):
        pass

    @app.job(name="reserve")
    def reserve(message: Order) -> None: ...

    @app.job(name="charge")
    def charge(message: Bill) -> None: ...

    def to_bill(run):
        return Bill()

    to_bill.__annotations__["return"] = Bill
    for steps, problem in [
        ([], "has no steps"),
        ([reserve], r"expected Step\(job, undo=job\)"),
        ([Step(print)], "is no job of this app"),
        ([Step(reserve), Step(reserve)], "reserve is two of its steps"),
        ([Step(reserve), Step(charge)], "charge takes Bill; the others need message="),
        ([Step(charge, message=to_bill)], "say what it starts with: message="),
        ([Step(reserve, undo=charge)], "undo=charge takes Bill, and reserve Order: .*undo_message"),
        ([Step(reserve, message=to_bill)], "to_bill makes .*Bill.*, and reserve takes .*Order"),
        ([Step(reserve, undo_message=to_bill)], "has an undo_message= and no undo="),
    ]:
        with pytest.raises(ContractError, match=problem):
            app.saga("order", steps)
    app.saga("order", [Step(reserve)])
    with pytest.raises(ContractError, match="there is a saga of this name already"):
        app.saga("order", [Step(reserve)])
    with pytest.raises(ContractError, match="expected lower case words"):
        app.saga("Order/1", [Step(reserve)])

"""What is checked, where, and what other programs see: sections 3 and 4 of the design."""

from __future__ import annotations

import json

import pytest
from celery import Celery
from support.process import eventually

from umbel import ContractError, JobState, Message
from umbel.consumers.deadletters import Kind, Reason

contracts = pytest.mark.promise("3 Contracts")
wire = pytest.mark.promise("4 On the wire")


@pytest.fixture
def plain(stage):
    """A program with Celery and without Umbel."""
    with Celery("plain", broker=stage.plain_url, set_as_current=False) as app:
        app.conf.task_create_missing_queue_type = "quorum"
        yield app


def send_plainly(stage, plain, args, *, name="conformance.work", **options) -> str:
    """With Celery alone, to our queue with our arguments."""
    queue = stage.app.app.amqp.queue("conformance")
    return plain.send_task(name, args, queue=queue, ignore_result=True, **options).id


def kept(stage, job_id):
    """The dead letter of a job, once it is there."""
    [letter] = eventually(lambda: stage.letters(job_id), 20)
    return letter


@contracts
def test_refused_at_send(stage):
    """Whatever way a message is sent, one that does not fit is refused, with the field."""
    case, work = stage.case(), stage.app.work
    mutated = stage.app.Work(case=case)
    mutated.number = "many"
    for send in (
        lambda: work.send(mutated),
        lambda: work.request(mutated),
        lambda: work.delay({"case": case, "number": "many"}),
        lambda: work.apply_async(({"case": case, "number": "many"},), countdown=1),
        lambda: stage.app.app.send_task("conformance.work", [{"case": case, "number": "many"}]),
    ):
        with pytest.raises(ContractError, match=r"conformance.work: number: .*valid integer"):
            send()
    with pytest.raises(ContractError, match="unknown"):
        work.delay({"case": case, "unknown": 1})
    work.request(stage.app.Work(case=stage.case())).result(20)
    assert not stage.marks(case)


@contracts
def test_one_name_one_contract(stage):
    """Two contracts with one name are refused at declaration."""

    class Other(Message, name="conformance.work", version=1):
        pass

    def other(message: Other) -> None: ...

    with pytest.raises(ContractError, match="is the name of"):
        stage.app.app.job(name="conformance.other")(other)


@contracts
def test_newer_producer(stage, plain):
    """Fields that only a newer producer knows are tolerated at consume."""
    case = stage.case()
    send_plainly(stage, plain, [{"case": case, "of tomorrow": 1}])
    stage.eventually_marks(1, case)


@contracts
def test_quarantine(stage, plain):
    """What breaks its contract is never run: it is kept with its bytes, and the worker goes on."""
    case = stage.case()
    letter = kept(stage, send_plainly(stage, plain, [{"case": case, "number": "many"}]))
    assert (letter.kind, letter.reason) == (Kind.QUARANTINE, Reason.CONTRACT)
    assert json.loads(letter.body)[0] == [{"case": case, "number": "many"}]
    stage.app.work.request(stage.app.Work(case=stage.case())).result(20)
    assert not stage.marks(case)


@contracts
def test_unknown_job(stage, plain):
    """A message for a job that nobody knows is kept, and the worker goes on."""
    letter = kept(stage, send_plainly(stage, plain, [1], name="conformance.nobody"))
    assert letter.kind is Kind.QUARANTINE
    stage.app.work.request(stage.app.Work(case=stage.case())).result(20)


@contracts
def test_unreadable(stage, plain):
    """Bytes that nobody can read are kept as they are, and the worker goes on."""
    before = {letter.id for letter in stage.app.app.dead_letters.newest(1000)}
    with plain.producer_pool.acquire() as producer:
        producer.publish(
            b"\xff\xfe<",
            routing_key="conformance",
            content_type="application/json",
            content_encoding="utf-8",
            headers={"task": "conformance.work", "id": stage.case()},
        )

    def found():
        return [one for one in stage.app.app.dead_letters.newest(9) if one.id not in before]

    [letter] = eventually(found, 20)
    assert (letter.kind, letter.body) == (Kind.QUARANTINE, b"\xff\xfe<")
    stage.app.work.request(stage.app.Work(case=stage.case())).result(20)


@contracts
def test_old_version(stage, plain):
    """Old messages are carried forward by `@upcast`."""
    handle = stage.app.resize.request(stage.app.Width(case="", widths=[1, 2]))
    assert handle.result(20) == [1, 2]
    job_id = stage.case()
    stage.app.app.records.queued(job_id, "conformance.width")
    headers = {"umbel-contract": "conformance.width", "umbel-version": 1, "umbel-tracked": True}
    old = [{"case": "", "width": 5}]
    send_plainly(stage, plain, old, name="conformance.width", task_id=job_id, headers=headers)
    assert stage.app.app.handle(job_id).result(20) == [5]


@contracts
def test_versions_side_by_side(fresh):
    """Workers of the last version and of the next share a queue: all is done, by who can."""
    old, new = fresh.load("version_1"), fresh.load("version_2")
    case = fresh.case()
    for module in (old, new):
        fresh.start_worker(module.__name__.rpartition("_")[0])
    for number in range(3):
        old.greet.send(old.Greet(case=case, name=f"old {number}"))
        new.greet.send(new.Greet(case=case, names=[f"new {number}"]))
    found = fresh.eventually_marks(6, case, timeout_s=60)
    assert {one["name"] for one in found} == {f"{v} {n}" for v in ("old", "new") for n in range(3)}
    assert {one["by"] for one in found if one["name"].startswith("new")} == {2}
    assert old.app.dead_letters.count() == 0


@contracts
def test_secrets(stage):
    """Secrets travel in clear for the job, and are stars in dead letters."""
    case = stage.case()
    sent = stage.app.keeps.send(stage.app.Secret(case=case, token="hunter2"))
    letter = kept(stage, sent.id)
    assert stage.marks(case)[0]["right"]
    assert "hunter2" not in letter.shown + letter.error + letter.traceback
    assert "**" in letter.shown


@wire
def test_plain_producer(stage, plain):
    """A plain Celery producer sends to a job; what it sends is checked."""
    case = stage.case()
    job_id = send_plainly(stage, plain, [{"case": case, "number": 3}])
    [ran] = stage.eventually_marks(1, case)
    assert (ran["id"], ran["number"]) == (job_id, 3)


@wire
def test_envelope(fresh):
    """A job's message is Celery's protocol 2 in JSON, our headers beside it."""
    receipt = fresh.app.work.send(fresh.app.Work(case="1", number=3), correlation_id="c")
    plain = Celery("plain", broker=fresh.plain_url, set_as_current=False)
    with plain, plain.connection_for_read() as connection:
        message = connection.default_channel.basic_get("conformance")
        headers = message.headers
        assert (headers["task"], headers["id"]) == ("conformance.work", receipt.id)
        assert (headers["umbel-version"], headers["umbel-correlation-id"]) == (1, "c")
        payload = {"case": "1", "number": 3, "key": "", "fails": 0, "seconds": 0.0}
        body = message.body
        assert json.loads(body)[0] == [payload]
        assert message.content_type == "application/json"


@wire
def test_plain_tasks(stage):
    """Plain `@app.task` functions live beside jobs, with their results."""
    assert stage.app.add.delay(1, 2).get(timeout=20) == 3


@wire
def test_canvas(stage):
    """Chains, groups and chords of jobs and tasks."""
    from celery import chain, chord, group

    work = stage.app.Work
    signatures = [stage.app.work.s(work(case=stage.case(), number=n)) for n in range(3)]
    results = group(signatures).apply_async().get(timeout=20)
    assert [one["number"] for one in results] == [0, 1, 2]
    assert chord(signatures, stage.app.numbers.s()).apply_async().get(timeout=20) == 3
    follow = chain(stage.app.add.s(1, 2), stage.app.add.s(4)).apply_async()
    assert follow.get(timeout=20) == 7


@wire
def test_canvas_misfit(stage):
    """A canvas of jobs that do not fit each other is refused when it is built."""
    from celery import chain

    with pytest.raises(ContractError):
        chain(stage.app.settled.s(stage.app.Work(case="")), stage.app.resize.s()).apply_async()


@wire
def test_delay_is_tracked(stage):
    """`job.delay({…})` keeps its result as `request` does."""
    result = stage.app.work.delay({"case": stage.case(), "number": 4})
    assert result.get(timeout=20) == {"number": 4}
    handle = stage.app.app.handle(result.id)
    eventually(lambda: handle.state() is JobState.SUCCEEDED, 10, handle.record)

"""Who else sends, hears and consumes: loops, URLs, databases, other programs, and configuration."""

from __future__ import annotations

import subprocess
import sys
from base64 import b64encode
from textwrap import dedent

import kombu
import pytest
from sqlalchemy import MetaData
from sqlalchemy.orm import Session
from support.process import eventually

from umbel import Completed, ContractError, JobState, SettingsError, to_xml
from umbel.producers.outbox import OutboxDatabase, Relay, outbox_table
from umbel.webhooks import verify

callbacks = pytest.mark.promise("5.1 Callbacks")
events = pytest.mark.promise("5.2 Events")
pulling = pytest.mark.promise("5.3 Direct work queues")
wire = pytest.mark.promise("4 On the wire")
topology = pytest.mark.promise("5.5 Topology by configuration")
outbox = pytest.mark.promise("6 Delivery")

SECRET = f"whsec_{b64encode(bytes(32)).decode()}"


@pulling
def test_pull(fresh):
    """`app.pull`: the caller's own loop does the job, and leaving the block settles it."""
    app, case = fresh.app, fresh.case()
    handles = [app.flaky.request(app.Work(case=case, number=number)) for number in (1, -1)]
    run(
        fresh,
        """
        for delivery in app.pull("conformance", limit=2, timeout_s=20):
            with delivery as message:
                if message.number < 0:
                    raise KeyError("for good")
                delivery.result = Result(number=message.number)
        """,
    )
    assert handles[0].result(20) == app.Result(number=1)
    eventually(lambda: handles[1].state() is JobState.FAILED)
    assert len(fresh.letters(handles[1].id)) == 1


@pulling
def test_pull_ends(fresh):
    """`app.pull` ends after its time without a message; a loop that is left leaves the rest."""
    app, case = fresh.app, fresh.case()
    app.work.send_many(app.Work(case=case, number=number) for number in range(3))
    run(
        fresh,
        """
        for delivery in app.pull("conformance", timeout_s=20):
            with delivery:
                break
        assert list(app.pull("told", timeout_s=0.5)) == []
        """,
    )
    fresh.start_worker()
    ran = fresh.eventually_marks(2, case)
    assert sorted(one["number"] for one in ran) == [1, 2]


@events
def test_broadcast(fresh):
    """`broadcast=True`: each worker that is up gets the event, once."""
    app, case = fresh.app, fresh.case()
    for _ in range(2):
        fresh.start_worker()
    app.app.publish(app.Happened(case=case, number=1))
    fresh.eventually_marks(2, case, "everywhere")
    fresh.eventually_marks(1, case, "audit")
    assert len({one["worker"] for one in fresh.marks(case, "everywhere")}) == 2


@callbacks
def test_callback_to_a_url(fresh, receiver):
    """A URL is told of success, signed as Standard Webhooks."""
    fresh.env |= {
        "UMBEL_WEBHOOK_SECRETS": SECRET,
        "UMBEL_WEBHOOK_ALLOW": "127.0.0.1",
        "UMBEL_WEBHOOK_CA_FILE": str(receiver.ca_file),
    }
    app, case = fresh.load(), fresh.case()
    fresh.start_worker()
    sent = app.work.send(app.Work(case=case, number=3), on_success=receiver.url("/done"))
    [posted] = eventually(lambda: receiver.at("/done"), 20)
    told = verify(posted.body, posted.headers, SECRET, Completed[app.Result])
    assert (told.job_id, told.result) == (sent.id, app.Result(number=3))


@callbacks
def test_url_without_a_secret(stage):
    """A callback to a URL that could not be signed, or not be reached, is refused at send."""
    work, message = stage.app.work, stage.app.Work(case=stage.case())
    with pytest.raises(SettingsError, match="UMBEL_WEBHOOK_SECRETS"):
        work.send(message, on_success="https://example.com/hook")
    with pytest.raises(ContractError, match="https"):
        work.send(message, on_success="ftp://example.com/hook")


@wire
@pytest.mark.parametrize("form", ["JSON", "XML", "CloudEvent"])
def test_document(stage, form):
    """JSON, XML or a CloudEvent of any program on a work queue is the message of its job."""
    case = stage.case()
    message = stage.app.Work(case=case, number=5)
    text = message.model_dump_json()
    body, content_type = {
        "JSON": (text.encode(), "application/json"),
        "XML": (to_xml(message), "application/xml"),
        "CloudEvent": (
            b'{"specversion": "1.0", "id": "1", "source": "/tests", "type": "conformance.work", '
            b'"data": ' + text.encode() + b"}",
            "application/cloudevents+json",
        ),
    }[form]
    put(stage, "heavy", body, content_type)
    [ran] = stage.eventually_marks(1, case, "in")
    assert ran["number"] == 5


def put(stage, queue: str, body: bytes, content_type: str) -> None:
    """As a program that knows the broker and nothing else."""
    if stage.broker != "RabbitMQ":
        stage.app.app.store.client.lpush(queue, body)
        return
    with kombu.Connection(stage.plain_url) as connection:
        connection.Producer().publish(
            body, routing_key=queue, content_type=content_type, content_encoding="utf-8"
        )


@outbox
def test_outbox(stage, tmp_path):
    """`app.outbox(session)`: messages and rows are committed together, or vanish together."""
    database = OutboxDatabase(f"sqlite:///{tmp_path / 'shop.db'}", "umbel_outbox")
    metadata = MetaData()
    outbox_table(metadata)
    metadata.create_all(database.engine)
    app, kept, dropped = stage.app, stage.case(), stage.case()
    with Session(database.engine) as session:
        sent = app.app.outbox(session).send(app.work, app.Work(case=kept))
        session.commit()
        app.app.outbox(session).send(app.work, app.Work(case=dropped))
        session.rollback()
    assert Relay(app.app.sender, database).drain() == 1
    [ran] = stage.eventually_marks(1, kept)
    assert ran["id"] == sent.id
    assert not stage.marks(dropped)
    database.engine.dispose()


@topology
def test_settings_by_file(fresh):
    """A job's retries and limits by `umbel.toml`, without touching code."""
    file = fresh.directory / "settings.toml"
    file.write_text('[jobs."conformance.flaky"]\nretry = {immediate = 3, delays_s = []}\n')
    fresh.env |= {"UMBEL_CONFIG": str(file)}
    app, case = fresh.app, fresh.case()
    fresh.start_worker()
    assert app.flaky.request(app.Work(case=case, fails=3)).result(20) == app.Result(number=4)


@topology
def test_commands(stage):
    """`topology declare` makes what is there, and `topology check` finds nothing that differs."""
    for command in ("declare", "check"):
        celery(stage, "topology", command)


def run(stage, source: str) -> None:
    """A program of somebody's, with the application."""
    program = "from application import Result, app\n" + dedent(source)
    _call(stage, [sys.executable, "-c", program])


def celery(stage, *arguments: str) -> None:
    """As on a terminal."""
    _call(stage, [sys.executable, "-m", "celery", "-A", "application", *arguments])


def _call(stage, command: list[str]) -> None:
    done = subprocess.run(
        command,
        cwd=stage.directory,
        env=stage.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stdout + done.stderr

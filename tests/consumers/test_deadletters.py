"""`celery -A app deadletters`, as a user types it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from support.process import eventually

from umbel.cli.deadletters import deadletters

APP = """
from umbel import Message, Umbel

app = Umbel("shop")

class Fail(Message, name="shop.fail", version=1):
    text: str

@app.job(queue="fragile")
def fail(message: Fail) -> None:
    raise ValueError(message.text)
"""


@pytest.fixture
def shop(write_app, start_worker, valkey):
    """An app with one dead letter and one message in quarantine."""
    shop = write_app(APP)
    worker = start_worker(shop)
    shop.fail.send(shop.Fail(text="no [bold]luck"), job_id="job-7")
    valkey.client().lpush("fragile", b"\xffgarbage")
    eventually(lambda: shop.app.dead_letters.count() == 2)
    worker.kill()
    return shop


def celery(shop, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """The command, with a wide terminal."""
    command = [sys.executable, "-m", "celery", "-A", shop.__name__, *arguments]
    return subprocess.run(
        command, check=False, capture_output=True, env=os.environ | {"COLUMNS": "200"}
    )


def test_list_shows_what_was_not_done(shop):
    """A line each, the newest first; filters and JSON for programs."""
    table = celery(shop, "deadletters", "list").stdout.decode()
    assert "shop.fail" in table
    assert "ValueError: no [bold]luck" in table
    assert "quarantine" in table
    one = celery(shop, "deadletters", "list", "--format", "json", "--kind", "dead").stdout
    assert json.loads(one) | {"job_id": "job-7", "reason": "failed", "attempts": 1} == json.loads(
        one
    )
    assert celery(shop, "deadletters", "list", "--queue", "nope").stdout == b"no dead letters\n"


def test_a_terminal_obeys_no_message(shop):
    """What is a stranger's is shown without its control characters, on one line."""
    for letter in shop.app.dead_letters.newest(9):
        letter.error = letter.queue = "\x1b[2Jred\r\nline"
        letter.traceback = ""
        shop.app.dead_letters.add(letter)
    for arguments in (["list"], ["show", "job-7"], ["replay", "--all", "--dry-run"]):
        shown = CliRunner().invoke(deadletters, arguments, obj=SimpleNamespace(app=shop.app)).output
        assert "red" in shown
        assert not {"\x1b", "\r", "\nline"} & set(shown)


def test_show_tells_all_but_the_body(shop):
    """By its id or its job's; `--raw` gives the bytes."""
    shown = celery(shop, "deadletters", "show", "job-7").stdout.decode()
    for part in ("dead (failed)", "shop.fail", "fragile", "Fail(text='no [bold]luck')"):
        assert part in shown
    assert "raise ValueError(message.text)" in shown
    [garbage] = [one for one in shop.app.dead_letters.newest(9) if not one.job]
    assert celery(shop, "deadletters", "show", "--raw", garbage.id).stdout == b"\xffgarbage"


def test_what_is_not_there_is_a_clear_error(shop):
    """An unknown id, and an app that is none of ours."""
    done = celery(shop, "deadletters", "show", "nope")
    assert done.returncode == 1
    assert done.stderr == b"Error: no dead letter 'nope'; `deadletters list` shows their ids\n"


def test_an_unknown_queue_ends_the_worker_with_the_known_ones(shop):
    """One line and no traceback."""
    done = celery(shop, "worker", "-Q", "nope")
    assert done.returncode == 1
    last = done.stderr.decode().strip().splitlines()[-1]
    assert last == "celery worker: no queue 'nope' in this app; there are: fragile, shop"
    assert b"Traceback" not in done.stderr


def test_a_worker_without_a_place_for_dead_letters_does_not_start(shop, monkeypatch):
    """On RabbitMQ the store has to be named; the error says how."""
    monkeypatch.setenv("UMBEL_BROKER_URL", "amqp://localhost:1//")
    done = celery(shop, "worker")
    assert done.returncode == 1
    assert b"keeping dead letters needs a state store" in done.stderr
    assert b"set UMBEL_STORE_URL" in done.stderr

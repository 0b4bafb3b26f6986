"""Queues, routes, limits and retries by a file, with the code untouched."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support.process import eventually

from umbel import Message, Retry, Settings, SettingsError, Umbel, WorkQueue
from umbel.config.sections import JobSection, QueueSection, RetrySection, SubscriberSection

PAGE = (Path(__file__).parents[2] / "docs" / "configuration.md").read_text()

APP = """
from pathlib import Path
from umbel import Event, JobContext, Message, Retry, Umbel, WorkQueue

app = Umbel("shop")
MARKS = Path(__file__).parent / "marks"

class Resize(Message, name="image.resize", version=1):
    width: int

class Moved(Message, name="image.moved", version=1):
    key: str

class Sold(Event, name="shop.sold", version=1):
    number: int

@app.job(queue=WorkQueue("images", prefetch=8), retry=Retry(immediate=1, give_up_on=(KeyError,)))
def resize(message: Resize, context: JobContext) -> None:
    with MARKS.open("a") as file:
        file.write(f"{resize.request.delivery_info['routing_key']} {context.attempt}\\n")
    raise ValueError("never")

@app.job(queue=WorkQueue("moves", shards=2), shard_key="key")
def move(message: Moved) -> None: ...

@app.subscribe(Sold, timeout_s=60)
def book(event: Sold) -> None: ...
"""

FILE = """
[queues.heavy]
priorities = true
max_deliveries = 7

[queues.images]
prefetch = 2

[queues.moves]
shards = 3

[jobs."image.resize"]
queue = "heavy"
retry = { immediate = 0, delays_s = [0.1, 0.1] }
timeout_s = 30
rate_limit = "600/m"

[subscribers.book]
timeout_s = 5
max_deliveries = 2

[jobs."image.resise"]
timeout_s = 1
"""


@pytest.mark.brokers("valkey", "rabbitmq")
def test_a_file_moves_and_limits_a_job(app_dir, write_app, start_worker):
    """Producer and worker go by it; what it names and this app does not have is said."""
    (app_dir / "umbel.toml").write_text(FILE)
    shop = write_app(APP)
    worker = start_worker(shop, pool="solo")
    shop.resize.send(shop.Resize(width=1), priority="high")
    eventually(lambda: shop.app.dead_letters.count() == 1, 30)
    assert shop.MARKS.read_text().splitlines() == ["heavy.high 1", "heavy.high 2", "heavy.high 3"]
    assert "there is no 'image.resise' in this app; did you mean 'image.resize'?" in worker.logs()
    inspect = shop.app.control.inspect(timeout=1)
    limited = "image.resize [rate_limit=600/m]"
    eventually(lambda: limited in str(inspect.registered("rate_limit")), 30)


def test_the_file_wins_over_code_and_keeps_the_rest(app_dir, write_app):
    """What is not said there stays as the decorator has it."""
    (app_dir / "umbel.toml").write_text(FILE)
    shop = write_app(APP)
    plan = shop.resize.plan
    assert plan.retry == Retry(immediate=0, delays_s=(0.1, 0.1), give_up_on=(KeyError,))
    assert (plan.timeout_s, plan.max_deliveries, plan.queue.priorities) == (30, 7, True)
    assert (shop.resize.time_limit, shop.resize.rate_limit) == (30, "600/m")
    assert (shop.book.timeout_s, shop.book.time_limit, shop.book.max_deliveries) == (5, 5, 2)
    assert shop.move.work_queue.parts == ("moves.0", "moves.1", "moves.2")
    images = shop.app.work_queues["images"]  # what waits there is still done
    assert images == WorkQueue("images", prefetch=2)


def test_nothing_is_read_at_import(app_dir, write_app):
    """A file that is wrong, or comes later, is none of the import's business."""
    (app_dir / "umbel.toml").write_text("[[[")
    shop = write_app(APP)
    with pytest.raises(SettingsError, match="umbel.toml is no TOML"):
        _ = shop.resize.work_queue
    (app_dir / "umbel.toml").write_text(FILE)
    assert shop.resize.work_queue.name == "heavy"


def test_a_job_that_is_declared_late_is_configured_too(app_dir, write_app):
    """After the settings have been read, and the queues made."""
    (app_dir / "umbel.toml").write_text('[jobs."shop.late"]\nqueue = "nights"\ntimeout_s = 3')
    app = write_app(APP).app
    assert "nights" not in app.amqp.queues

    class Late(Message, name="shop.late", version=1):
        pass

    def late(message: Late) -> None: ...

    job = app.job(late)
    assert (job.work_queue.name, job.time_limit) == ("nights", 3)
    assert "nights" in app.amqp.queues


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ('[jobs."image.resize"]\nqueue = "moves"', "'moves' has shards=2, .* go together"),
        ("[queues.images]\nshards = 2", "'images' has shards, which keep their order"),
        ('[jobs."image.moved"]\nqueue = "one"', "'one' has shards=None"),
        ('[jobs."image.resize"]\nqueue = "a b"', "'a b' is no queue name"),
        ('[jobs."image.resize"]\nqueue = "shop.book"', "'shop.book' is a subscriber's queue"),
        ('[queues."shop.book"]\npriorities = true', "events have no priorities"),
    ],
)
def test_what_does_not_fit_the_code_is_refused(app_dir, write_app, text, why):
    """By whoever first asks for it, with what does not go together."""
    (app_dir / "umbel.toml").write_text(text)
    shop = write_app(APP)
    with pytest.raises(SettingsError, match=why):
        _ = shop.app.work_queues


def test_sections_are_no_arguments_of_an_app():
    """In code a job says it itself."""
    with pytest.raises(SettingsError, match="queues: there is no such setting"):
        Umbel("shop", queues={"images": {"prefetch": 1}})


def test_the_page_and_the_settings_agree():
    """Each key of each section has its row, and no other; its files are read as they stand."""
    rows = re.findall(r"^\| `(\w+)` \| (queues|jobs|subscribers|jobs, subscribers) \|", PAGE, re.M)
    documented = {(section, key) for key, where in rows for section in where.split(", ")}
    models = {"queues": QueueSection, "jobs": JobSection, "subscribers": SubscriberSection}
    assert documented == {
        (section, key) for section, model in models.items() for key in model.model_fields
    }
    for key in RetrySection.model_fields:
        assert f"`{key}`" in PAGE
    whole, table = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    settings = Settings.model_validate(tomllib.loads(whole))
    assert settings.jobs["image.resize"].queue == "heavy"
    assert Settings.model_validate(tomllib.loads(table)["tool"]["umbel"]).lease_s == 5


def test_a_worker_with_a_wrong_file_does_not_start(app_dir, write_app):
    """It says which file, and where."""
    shop = write_app(APP)
    (app_dir / "umbel.toml").write_text("lease_s = = 3")
    command = [sys.executable, "-m", "celery", "-A", shop.__name__, "worker"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=app_dir)
    assert done.returncode != 0
    assert "umbel.toml is no TOML: Invalid value (at line 1, column 11)" in done.stderr

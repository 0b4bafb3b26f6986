"""Each step of docs/from-celery.md, with old and new programs on one broker at the same time."""

from __future__ import annotations

import re
import sys
from contextlib import closing
from pathlib import Path

import pytest
from support.process import LocalProcess, eventually

pytestmark = pytest.mark.brokers("valkey", "rabbitmq")

PAGE = (Path(__file__).parents[1] / "docs" / "from-celery.md").read_text()
BLOCKS = dict(re.findall(r"```python\n# ([^\n]+)\n(.*?)```", PAGE, re.DOTALL))
BEFORE, BACK = BLOCKS["shop.py, before"], BLOCKS["shop.py, the old one with a way back from step 3"]
NEW = {
    1: BLOCKS["shop.py, step 1"],
    2: BLOCKS["shop.py, step 2"],
    3: BLOCKS["shop.py, step 2"] + BLOCKS["shop.py, step 3: at its end"],
}


@pytest.fixture
def old_env(app_dir, broker, valkey, monkeypatch):
    """What a plain Celery program is told by."""
    env = {"CELERY_BROKER_URL": broker.url, "CELERY_RESULT_BACKEND": valkey.url}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    return env


@pytest.fixture
def old(old_env, write_app):
    """The service as it was, its producers in this process."""
    module = write_app(BEFORE, "old")
    # Of its own, for the environment of this process is the new program's later on.
    broker_url, result_backend = old_env.values()
    module.app.conf.update(broker_url=broker_url, result_backend=result_backend)
    return module


@pytest.fixture
def write_new(old_env, write_app, monkeypatch, valkey):
    """Factory: the service after a step; it needs no variables of Celery's."""

    def write(step):
        for name in old_env:
            monkeypatch.delenv(name)
        monkeypatch.setenv("UMBEL_STORE_URL", valkey.url)
        module = write_app(NEW[step], f"step{step}")
        assert module.app.conf.result_backend == valkey.url
        return module

    return write


@pytest.mark.parametrize("step", NEW)
def test_old_and_new_work_side_by_side(old, old_env, write_new, start_worker, step):
    """Workers and producers of both: each call is answered, old calls by new workers too."""
    old_worker = start_worker(old, env=old_env)
    new = write_new(step)
    start_worker(new)
    answers = {}
    for order in range(10):
        answers[f"order {order}: 5 euros"] = old.charge.delay(order, 5)
        answers[f"order {order}: 6 euros"] = new.charge.delay(order, 6)
        if step > 1:
            job = new.charge_order.request(new.Charge(order=order, euros=7))
            answers[f"order {order}: 7 euros"] = new.app.AsyncResult(job.id)
    for answer, result in answers.items():
        assert result.get(timeout=20) == answer
    old_worker.stop()
    assert old.charge.delay(11, 5).get(timeout=20) == "order 11: 5 euros"
    assert old.report.delay("today").get(timeout=20) == "report of today"


def test_the_producer_of_step_3(write_new, start_worker, capsys):
    """As it stands, and what beat is told to send."""
    new = write_new(3)
    start_worker(new)
    producer = BLOCKS["a producer, step 3"].replace("import shop", "")
    exec(compile(producer, "from-celery.md", "exec"), {"shop": new})
    assert capsys.readouterr().out == "order 7: 80 euros\n"
    entry = new.app.conf.beat_schedule["report"]
    sent = new.app.send_task(entry["task"], entry["args"])
    assert sent.get(timeout=20) == "report of yesterday"


@pytest.mark.brokers("valkey")
def test_the_way_back(old_env, write_app, write_new, start_worker):
    """An old worker with the shim does what new producers left; on RabbitMQ new workers do."""
    back = write_app(BACK, "back")
    new = write_new(3)
    job = new.charge_order.delay({"order": 1, "euros": 2})
    task = new.charge.delay(3, 4)
    start_worker(back, env=old_env, queues=["celery", "shop"])
    assert task.get(timeout=20) == "order 3: 4 euros"
    assert job.get(timeout=20) == "order 1: 2 euros"


def test_beat_sends_typed_messages(write_app, start_worker):
    """A real beat: an entry with a message, a signature, and a message made at each tick."""
    shop = write_app(BEAT)
    start_worker(shop)
    command = [sys.executable, "-m", "celery", "-A", shop.__name__, "beat", "-l", "INFO"]
    beat = LocalProcess(
        name="beat", command=command, cwd=Path(shop.__file__).parent, ready="beat: Starting"
    )
    with closing(beat):
        beat.start()
        expected = {"entry", "signature", "made at a tick"}
        eventually(lambda: expected <= seen(shop), 20, lambda: f"{seen(shop)} {beat.logs()}")


def seen(shop) -> set[str]:
    """What the jobs noted."""
    return set(shop.MARKS.read_text().splitlines()) if shop.MARKS.exists() else set()


BEAT = """
from pathlib import Path
from umbel import Message, Umbel

app = Umbel("beat")
MARKS = Path(__file__).parent / "marks"

class Sweep(Message, name="beat.sweep", version=1):
    room: str

@app.job
def sweep(message: Sweep) -> None:
    with MARKS.open("a") as file:
        file.write(f"{message.room}\\n")

@app.task(name="beat.tick", shared=False)
def tick() -> None:
    sweep.send(Sweep(room="made at a tick"))

app.conf.beat_schedule = {
    "entry": {"task": "beat.sweep", "schedule": 0.5, "args": (Sweep(room="entry"),)},
}

@app.on_after_finalize.connect
def schedule(sender, **_):
    sender.add_periodic_task(0.5, sweep.s(Sweep(room="signature")), name="signature")
    sender.add_periodic_task(0.5, tick.s(), name="tick")
"""

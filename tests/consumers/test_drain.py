"""The end of a worker, and what a supervisor sees of its life."""

from __future__ import annotations

import os
import signal
import time

import pytest
from support.process import eventually

APP = """
import time
from pathlib import Path
from umbel import JobContext, Message, Umbel

app = Umbel("shop")
MARKS = Path(__file__).parent / "marks"

class Nap(Message, name="shop.nap", version=1):
    number: int
    seconds: float

@app.job
def nap(message: Nap, context: JobContext) -> int:
    with MARKS.open("a") as file:
        file.write(f"begin {message.number}\\n")
    time.sleep(message.seconds)
    with MARKS.open("a") as file:
        file.write(f"end {message.number}\\n")
    return context.attempt
"""


@pytest.fixture
def shop(write_app):
    return write_app(APP)


def marks(shop) -> list[str]:
    return shop.MARKS.read_text().split("\n")[:-1] if shop.MARKS.exists() else []


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_sigterm_finishes_what_runs_and_gives_back_the_rest(shop, start_worker, valkey, pool):
    """What runs ends in this worker; what waits is in the queue when it has ended."""
    worker = start_worker(shop, pool=pool)
    shop.nap.send_many(shop.Nap(number=number, seconds=1.5) for number in range(3))
    eventually(lambda: marks(shop) == ["begin 0"])
    assert worker.stop() == 0
    assert marks(shop) == ["begin 0", "end 0"]
    assert valkey.client().llen("shop") == 2
    start_worker(shop, pool=pool)
    eventually(lambda: len(marks(shop)) == 6, 15)
    assert sorted(marks(shop)) == sorted(f"{w} {n}" for n in range(3) for w in ("begin", "end"))


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_after_the_grace_period_it_goes_back_uncounted(shop, start_worker, valkey, pool):
    """The job is stopped, its message is back at once, and no run is counted."""
    worker = start_worker(shop, pool=pool, env={"UMBEL_GRACE_S": "1", "UMBEL_LEASE_S": "60"})
    handle = shop.nap.request(shop.Nap(number=1, seconds=3))
    eventually(lambda: marks(shop) == ["begin 1"])
    assert worker.stop() == 0
    client = valkey.client()
    [element] = client.lrange("shop", 0, -1)
    assert b"umbel-deliveries" not in element
    assert client.keys("_umbel.claims.*") == []
    start_worker(shop, pool=pool)
    assert handle.result(15) == 1
    assert marks(shop) == ["begin 1", "begin 1", "end 1"]


def test_a_tick_of_the_loop_shows_life_while_the_broker_is_away_too(
    shop, start_worker, valkey, app_dir
):
    """The file's time goes on; it stops with a frozen worker."""
    alive = app_dir / "alive"
    worker = start_worker(shop, env={"UMBEL_LIVENESS_FILE": str(alive)})

    def ticks_on() -> bool:
        before = time.time()
        eventually(lambda: alive.exists() and alive.stat().st_mtime > before, 8)
        return True

    assert ticks_on()
    valkey.kill()
    worker.wait_for_log("Connection refused", timeout_s=20)
    assert ticks_on()
    assert ticks_on()
    os.kill(worker.pid, signal.SIGSTOP)
    stopped = alive.stat().st_mtime
    worker_is_stopped_since = time.monotonic()
    eventually(lambda: time.monotonic() - worker_is_stopped_since > 2.5)
    assert alive.stat().st_mtime == stopped
    os.kill(worker.pid, signal.SIGCONT)

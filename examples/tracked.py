"""A tracked request: state, progress, a typed result, and cancel.

python examples/tracked.py

Starts a worker of its own on the embedded broker, and ends by itself.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from umbel import JobCancelled, JobContext, Message, Umbel

app = Umbel("sums")


class AddUp(Message, name="sums.add-up", version=1):
    """What to add up, and how long each takes."""

    numbers: list[int]
    each_s: float = 0.1


class Total(Message, name="sums.total", version=1):
    """What came of it."""

    value: int


@app.job
def add_up(message: AddUp, context: JobContext) -> Total:
    """Says how far it is, and looks whether somebody wants it to end."""
    total = 0
    for done, number in enumerate(message.numbers, 1):
        context.raise_if_cancelled()
        time.sleep(message.each_s)
        total += number
        context.progress(done, len(message.numbers), note=f"added {number}")
    return Total(value=total)


def main() -> None:
    """One that is awaited, and one that is cancelled."""
    handle = add_up.request(AddUp(numbers=list(range(10))))
    for record in handle.watch(timeout_s=30):
        done = f"{record.progress.percent:.0f} %" if record.progress else ""
        print(f"  {record.state.value} {done}")
    print(f"the total is {handle.result().value}")

    handle = add_up.request(AddUp(numbers=[1] * 1000))
    handle.cancel()
    try:
        handle.result(30)
    except JobCancelled:
        print("the second was cancelled")


if __name__ == "__main__":
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "tracked", "worker", "-c", "1", "-l", "WARNING"],
        cwd=Path(__file__).parent,
    )
    try:
        main()
    finally:
        worker.terminate()
        worker.wait()

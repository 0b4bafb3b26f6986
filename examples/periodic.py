"""Periodic jobs: Celery's beat sends typed messages, some of them made at each tick.

python examples/periodic.py

Starts a worker of its own on the embedded broker, and ends by itself.
"""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from umbel import Message, Umbel

app = Umbel("cleaning")
DONE = Path("cleaned.txt")


class Sweep(Message, name="cleaning.sweep", version=1):
    """Which room."""

    room: str


class Report(Message, name="cleaning.report", version=1):
    """Up to when."""

    until: datetime


@app.job
def sweep(message: Sweep) -> None:
    """Every second, for this example."""
    note(f"swept {message.room}")


@app.job
def report(message: Report) -> None:
    """With the time of the tick."""
    note(f"report until {message.until.year}")


@app.task(name="cleaning.make-report")
def make_report() -> None:
    """A plain task that beat sends: the message is made when it runs, and not when beat started."""
    report.send(Report(until=datetime.now(UTC)))


@app.on_after_finalize.connect
def schedule(sender: Umbel, **_: object) -> None:
    """What to send, and when: seconds or `celery.schedules.crontab`."""
    sender.add_periodic_task(1.0, sweep.s(Sweep(room="hall")), name="sweep the hall")
    sender.add_periodic_task(1.0, make_report.s(), name="report")


def note(line: str) -> None:
    """For `main` to see."""
    with DONE.open("a") as file:
        file.write(f"{line}\n")


def main() -> None:
    """Beat is a process of its own: one for all of an app."""
    DONE.unlink(missing_ok=True)
    beat = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "periodic", "beat", "-l", "WARNING"],
        cwd=Path(__file__).parent,
    )
    try:
        while not {"swept hall", f"report until {datetime.now(UTC).year}"} <= seen():
            time.sleep(0.1)
        print("\n".join(sorted(seen())))
    finally:
        beat.terminate()
        beat.wait()


def seen() -> set[str]:
    """What was done so far."""
    return set(DONE.read_text().splitlines()) if DONE.exists() else set()


if __name__ == "__main__":
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "periodic", "worker", "-c", "1", "-l", "WARNING"],
        cwd=Path(__file__).parent,
    )
    try:
        main()
    finally:
        worker.terminate()
        worker.wait()

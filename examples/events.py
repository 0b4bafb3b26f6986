"""Events: who publishes does not know who listens.

python examples/events.py

Starts two workers of its own on the embedded broker, and publishes two events.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from umbel import Event, Umbel

app = Umbel("kiosk")
NOTES = Path(__file__).parent / "notes.txt"


class Sold(Event, name="kiosk.sold", version=1):
    """Something happened."""

    article: str


class PricesChanged(Event, name="kiosk.prices.changed", version=1):
    """Likewise."""

    list: int


@app.subscribe(Sold)
def book(event: Sold) -> None:
    """Each event once, by one of the workers; what is published while none is up waits."""
    note(f"booked: {event.article}")


@app.subscribe("kiosk.#")
def audit(event: Event) -> None:
    """All events, by a pattern of their names."""
    note(f"seen: {type(event).__name__}")


@app.subscribe(PricesChanged, broadcast=True)
def forget(event: PricesChanged) -> None:
    """Each worker that is up, each event."""
    note(f"prices are read anew: list {event.list}")


def note(text: str) -> None:
    """One line, whoever writes."""
    with NOTES.open("a") as file:
        file.write(f"{text}\n")


EXPECTED = [
    "booked: paper",
    "prices are read anew: list 2",
    "prices are read anew: list 2",
    "seen: PricesChanged",
    "seen: Sold",
]


def main() -> None:
    """Publish, and wait for what comes of it."""
    app.publish(Sold(article="paper"))
    app.publish(PricesChanged(list=2))
    until = time.monotonic() + 30
    while len(NOTES.read_text().splitlines()) < len(EXPECTED) and time.monotonic() < until:
        time.sleep(0.1)
    print(*sorted(NOTES.read_text().splitlines()), sep="\n")


def start(name: str) -> subprocess.Popen[str]:
    """A worker that is up: from here on its broadcasts reach it."""
    command = f"-m celery -A events worker -n {name}@%h -c 1 -l INFO"
    worker = subprocess.Popen(
        [sys.executable, *command.split()],
        cwd=Path(__file__).parent,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert worker.stderr
    for line in worker.stderr:
        if line.rstrip().endswith(" ready."):
            return worker
    raise RuntimeError(f"worker {name} did not start")


if __name__ == "__main__":
    NOTES.write_text("")
    workers = [start("one"), start("two")]
    try:
        main()
    finally:
        for worker in workers:
            worker.terminate()
            worker.communicate()
        NOTES.unlink()

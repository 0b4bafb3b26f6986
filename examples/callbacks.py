"""Callbacks: other jobs are told how one has ended.

python examples/callbacks.py

Starts a worker of its own on the embedded broker, and ends by itself.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from umbel import Completed, Failed, Message, Umbel

app = Umbel("parcels")
HEARD = Path("heard.txt")


class Pack(Message, name="parcels.pack", version=1):
    """An order to be packed."""

    order: int


class Parcel(Message, name="parcels.parcel", version=1):
    """What came of it."""

    order: int
    grams: int


@app.job(queue="packing")
def pack(message: Pack) -> Parcel:
    """The job that they are told of."""
    if message.order == 13:
        raise ValueError("this box has no bottom")
    return Parcel(order=message.order, grams=1200)


@app.job(name="parcels.packed")
def packed(message: Completed[Parcel]) -> None:
    """Told of success, with the typed result."""
    note(f"order {message.result.order} weighs {message.result.grams} g")


@app.job(name="parcels.not-packed")
def not_packed(message: Failed) -> None:
    """Told once the job is given up."""
    note(f"not packed, {message.reason}: {message.error}")


def note(line: str) -> None:
    """For `main` to see."""
    with HEARD.open("a") as file:
        file.write(f"{line}\n")


def main() -> None:
    """One that can be packed, and one that cannot."""
    HEARD.unlink(missing_ok=True)
    for order in (1, 13):
        pack.send(Pack(order=order), on_success=packed, on_failure=not_packed)
    while not HEARD.exists() or len(HEARD.read_text().splitlines()) < 2:
        time.sleep(0.1)
    print(HEARD.read_text(), end="")


if __name__ == "__main__":
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "callbacks", "worker", "-c", "1", "-l", "WARNING"],
        cwd=Path(__file__).parent,
    )
    try:
        main()
    finally:
        worker.terminate()
        worker.wait()

"""Keys: of the messages with one, one runs at a time; or one is run at all.

python examples/keys.py

Starts a worker of its own on the embedded broker, and ends by itself.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from umbel import Message, Umbel

app = Umbel("hotel")
LOG = Path("rooms.txt")


class Clean(Message, name="hotel.clean", version=1):
    """A room."""

    room: str


class Charge(Message, name="hotel.charge", version=1):
    """Money for a stay."""

    stay: int
    euros: int


@app.job(concurrency_key="room")
def clean(message: Clean) -> None:
    """Never two in a room, on whatever machine."""
    with LOG.open("a") as file:
        file.write(f"into {message.room}\n")
        file.flush()
        time.sleep(0.1)
        file.write(f"out of {message.room}\n")


@app.job(idempotency_key=lambda message: f"stay-{message.stay}")
def charge(message: Charge) -> str:
    """Once for a stay; who asks again gets the same answer."""
    return f"{message.euros} euros at {time.time()}"


def main() -> None:
    """Three are to clean one room, and one stay is charged twice."""
    LOG.unlink(missing_ok=True)
    handles = [clean.request(Clean(room="12")) for _ in range(3)]
    for handle in handles:
        handle.result(30)
    print(LOG.read_text(), end="")
    first, second = (charge.request(Charge(stay=7, euros=80)).result(30) for _ in range(2))
    print(f"charged once: {first == second}")


if __name__ == "__main__":
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "keys", "worker", "-c", "2", "-l", "WARNING"],
        cwd=Path(__file__).parent,
    )
    try:
        main()
    finally:
        worker.terminate()
        worker.wait()

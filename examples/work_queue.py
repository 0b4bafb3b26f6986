"""A direct work queue: many producers, many consumers, each message to one; the urgent first.

python examples/work_queue.py

Starts a worker of its own on the embedded broker, and ends by itself.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from umbel import Message, Umbel, WorkQueue

app = Umbel("pictures")
IMAGES = WorkQueue("images", priorities=True, prefetch=1, max_deliveries=3)
DONE = Path("done.txt")


class Resize(Message, name="pictures.resize", version=1):
    """What to resize."""

    name: str


@app.job(queue=IMAGES)
def resize(message: Resize) -> None:
    """Each picture is somebody's, and nobody else's."""
    time.sleep(0.05)
    with DONE.open("a") as file:
        file.write(f"{message.name}\n")


def main() -> None:
    """They wait for a worker, which takes the urgent ones first."""
    DONE.unlink(missing_ok=True)
    for number in range(5):
        resize.send(Resize(name=f"archive {number}"), priority="low")
    resize.send(Resize(name="what a visitor waits for"), priority="high")
    while not DONE.exists() or len(DONE.read_text().splitlines()) < 6:
        time.sleep(0.1)
    print(DONE.read_text(), end="")


if __name__ == "__main__":
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "work_queue", "worker", "-c", "1", "-l", "WARNING"],
        cwd=Path(__file__).parent,
    )
    try:
        main()
    finally:
        worker.terminate()
        worker.wait()

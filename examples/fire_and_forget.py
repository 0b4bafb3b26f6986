"""Fire and forget: queued when `send` returns, and no result is kept.

python examples/fire_and_forget.py

Starts a worker of its own on the embedded broker, and ends by itself.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from umbel import Message, Umbel

app = Umbel("letters")
SENT = Path("letters.txt")


class Letter(Message, name="letters.letter", version=1):
    """The contract: what is sent must fit, and is checked before it is queued."""

    to: str
    text: str


@app.job
def deliver(message: Letter) -> None:
    """Runs in a worker, wherever that is."""
    with SENT.open("a") as file:
        file.write(f"{message.to}: {message.text}\n")


def main() -> None:
    """Three letters; nobody waits for them but this example."""
    SENT.unlink(missing_ok=True)
    receipt = deliver.send(Letter(to="Ada", text="hello"))
    print(f"queued as {receipt.id}")
    deliver.send_many([Letter(to="Alan", text="hello"), Letter(to="Grace", text="hello")])
    while not SENT.exists() or len(SENT.read_text().splitlines()) < 3:
        time.sleep(0.1)
    print(SENT.read_text(), end="")


if __name__ == "__main__":
    command = [sys.executable, "-m", "celery", "-A", "fire_and_forget", "worker"]
    worker = subprocess.Popen([*command, "-c", "1", "-l", "WARNING"], cwd=Path(__file__).parent)
    try:
        main()
    finally:
        worker.terminate()
        worker.wait()

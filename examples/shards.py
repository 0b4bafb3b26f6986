"""Shards: the messages of a key in their order, those of others beside them.

python examples/shards.py

Starts a worker of its own on the embedded broker, and ends by itself.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from umbel import Message, Retry, Umbel, WorkQueue

app = Umbel("accounts")
LEDGER = Path("ledger.txt")


class Booking(Message, name="accounts.booking", version=1):
    """The number counts within its account."""

    account: str
    number: int


@app.job(
    queue=WorkQueue("bookings", shards=4),
    shard_key="account",
    retry=Retry(immediate=1, delays_s=[0.5]),
)
def book(message: Booking) -> None:
    """Of an account one runs at a time; a retry keeps its place."""
    with LEDGER.open("a") as file:
        file.write(f"{message.account} {message.number}\n")


def main() -> None:
    """Thirty bookings of three accounts, on two processes."""
    LEDGER.unlink(missing_ok=True)
    for number in range(10):
        book.send_many(Booking(account=who, number=number) for who in ("Ada", "Alan", "Grace"))
    while not LEDGER.exists() or len(LEDGER.read_text().splitlines()) < 30:
        time.sleep(0.1)
    lines = [line.split() for line in LEDGER.read_text().splitlines()]
    for account in ("Ada", "Alan", "Grace"):
        print(account, *[number for who, number in lines if who == account])


if __name__ == "__main__":
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "shards", "worker", "-c", "2", "-l", "WARNING"],
        cwd=Path(__file__).parent,
    )
    try:
        main()
    finally:
        worker.terminate()
        worker.wait()

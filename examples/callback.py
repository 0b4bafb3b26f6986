"""Told how a job has ended: another job, and a URL.

python examples/callback.py

Starts a worker of its own on the embedded broker, and a receiver of webhooks on this machine.
"""

from __future__ import annotations

import base64
import os
import queue
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

from umbel import Completed, Failed, Message, Umbel, webhooks

# Callbacks go to public https:// URLs only, unless told otherwise; this receiver is at home.
app = Umbel("parcels", webhook_allow_http=True, webhook_allow=["127.0.0.1"])


class Pack(Message, name="parcels.pack", version=1):
    """What is to be packed."""

    article: str


class Parcel(Message, name="parcels.parcel", version=1):
    """What came of it."""

    article: str
    grams: int


@app.job
def pack(message: Pack) -> Parcel:
    """Succeeds, but for pianos."""
    if message.article == "piano":
        raise ValueError("too large")
    return Parcel(article=message.article, grams=1200)


@app.job(name="parcels.packed")
def packed(message: Completed[Parcel]) -> None:
    """Runs in a worker, as any job does."""
    print(f"a job was told: {message.result.article} weighs {message.result.grams} g", flush=True)


class Receiver(BaseHTTPRequestHandler):
    """Some other service. It knows the secret, the contracts, and nothing of the broker."""

    came: queue.SimpleQueue[Completed[Parcel] | Failed] = queue.SimpleQueue()

    def do_POST(self) -> None:
        """Verify, keep, answer; one that comes twice has the same webhook-id."""
        body = self.rfile.read(int(self.headers["content-length"]))
        secret = os.environ["UMBEL_WEBHOOK_SECRETS"]
        try:
            self.came.put(
                webhooks.verify(body, dict(self.headers), secret, Completed[Parcel], Failed)
            )
            self.send_response(204)
        except webhooks.InvalidWebhook as error:
            self.send_error(400, str(error))
        self.end_headers()

    def log_message(self, *args: object) -> None:
        """Not each request."""


def main(url: str) -> None:
    """One parcel that a job is told of, and two that the receiver is told of."""
    pack.send(Pack(article="book"), on_success=packed, on_failure=url)
    for article in ("lamp", "piano"):
        pack.send(Pack(article=article), on_success=url, on_failure=url)
        told = Receiver.came.get(timeout=60)
        if isinstance(told, Completed):
            print(f"a URL was told: {told.result.article} weighs {told.result.grams} g")
        else:
            print(f"a URL was told: {told.job} has {told.reason}: {told.error}")


if __name__ == "__main__":
    os.environ["UMBEL_WEBHOOK_SECRETS"] = "whsec_" + base64.b64encode(os.urandom(32)).decode()
    receiver = HTTPServer(("127.0.0.1", 0), Receiver)
    Thread(target=receiver.serve_forever, daemon=True).start()
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "callback", "worker", "-c", "1", "-l", "WARNING"],
        cwd=Path(__file__).parent,
    )
    try:
        main(f"http://127.0.0.1:{receiver.server_port}/hook")
    finally:
        worker.terminate()
        worker.wait()

"""Plain Celery beside: tasks, chains, groups and chords, with jobs among them.

python examples/with_celery.py

Starts a worker of its own on the embedded broker, and ends by itself.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from celery import chain, chord, group

from umbel import Message, Umbel

app = Umbel("mixed")


class Count(Message, name="mixed.count", version=1):
    """The words of what?"""

    text: str


class Words(Message, name="mixed.words", version=1):
    """So many."""

    number: int


@app.job
def count(message: Count) -> Words:
    """A job: its message is checked, also when Celery's canvas sends it."""
    return Words(number=len(message.text.split()))


@app.job(name="mixed.double")
def double(message: Words) -> Words:
    """Takes what `count` returns, so that it may follow it in a chain."""
    return Words(number=2 * message.number)


@app.task(name="mixed.total")
def total(results: list[dict[str, int]]) -> int:
    """A plain task: a job's result is JSON to it."""
    return sum(result["number"] for result in results)


def main() -> None:
    """Each of them, with the results in Celery's own way."""
    texts = [Count(text="one"), Count(text="and two"), Count(text="or three more")]
    print(count.delay({"text": "as a dict"}).get(timeout=30))
    print(chain(count.s(texts[2]), double.s()).apply_async().get(timeout=30))
    print(group(count.s(text) for text in texts).apply_async().get(timeout=30))
    print(chord([count.s(text) for text in texts], total.s()).apply_async().get(timeout=30))


if __name__ == "__main__":
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "with_celery", "worker", "-c", "1", "-l", "WARNING"],
        cwd=Path(__file__).parent,
    )
    try:
        main()
    finally:
        worker.terminate()
        worker.wait()

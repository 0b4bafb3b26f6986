"""Retries and delays: at once, then after a pause, and the dead letters at last.

python examples/retries.py

Starts a worker of its own on the embedded broker, and ends by itself.
"""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from umbel import JobContext, JobFailed, Message, Retry, Umbel

app = Umbel("post")


class Call(Message, name="post.call", version=1):
    """Somebody who answers at some try, or never."""

    who: str
    answers_at: int


@app.job(retry=Retry(immediate=1, delays_s=[0.5], give_up_on=(LookupError,)))
def call(message: Call, context: JobContext) -> str:
    """Three tries at most: one, one more at once, and one half a second later."""
    if message.who == "nobody":
        raise LookupError("there is no such person: no repetition mends this")
    if context.attempt < message.answers_at:
        raise TimeoutError("no answer")
    return f"{message.who} answered at try {context.attempt}"


def main() -> None:
    """One who answers late, two who never do, and a call that is made later."""
    print(call.request(Call(who="Ada", answers_at=3)).result(30))
    for who in ("Alan", "nobody"):
        try:
            call.request(Call(who=who, answers_at=9)).result(30)
        except JobFailed as failure:
            print(f"{who}: {failure.reason}")
    for letter in app.dead_letters.newest(5):
        print(f"dead letter: {letter.error}, {letter.attempts} tries")

    begun = time.monotonic()
    answer = call.request(Call(who="Grace", answers_at=1), delay_s=1.5).result(30)
    print(f"{answer}, {time.monotonic() - begun >= 1.5} that this was later")


if __name__ == "__main__":
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "retries", "worker", "-c", "1", "-l", "WARNING"],
        cwd=Path(__file__).parent,
    )
    try:
        main()
    finally:
        worker.terminate()
        worker.wait()

"""Umbel's jobs under chaos."""

from __future__ import annotations

import os
import signal
import time

from effects import effect, take, use_up_memory
from redis.exceptions import ConnectionError as RedisConnectionError

from umbel import Blob, Job, JobContext, JobHandle, Message, Retry, Umbel

# No second try of a send, which may leave two copies: whatever is done twice here, the workers or
# the broker did twice.
app = Umbel("chaos", task_publish_retry=False)


class Work(Message, name="chaos.work", version=1):
    """A job that takes its time."""

    number: int
    seconds: float = 0.0


@app.job(queue="work")
def work(message: Work) -> str:
    """Takes its time. Returns which run it was."""
    with effect(message.number, work) as run:
        take(message.seconds)
    return run


@app.job(queue="work", name="chaos.fragile", max_deliveries=1)
def fragile(message: Work) -> str:
    """The same; one run that ends with its process is one too many."""
    with effect(message.number, fragile) as run:
        take(message.seconds)
    return run


@app.job(queue="work", name="chaos.patient")
def patient(message: Work, context: JobContext) -> str:
    """The same, telling all the time how far it is."""
    with effect(message.number, patient) as run:
        ends_at = time.monotonic() + message.seconds
        while (left_s := ends_at - time.monotonic()) > 0:
            context.progress(message.seconds - left_s, message.seconds)
            context.raise_if_cancelled()
            time.sleep(min(left_s, 0.05))
    return run


@app.job(queue="work", name="chaos.deadly", max_deliveries=3)
def deadly(message: Work) -> None:
    """Takes the whole worker along: a pool's child its parent, any other job its own process."""
    with effect(message.number, deadly):
        if os.environ["CHAOS_POOL"] == "prefork":
            os.kill(os.getppid(), signal.SIGKILL)
            time.sleep(600)  # the end comes with the parent's
        os._exit(1)


@app.job(queue="work", name="chaos.hungry", max_deliveries=2)
def hungry(message: Work) -> None:
    """Takes memory until the kernel ends it."""
    with effect(message.number, hungry):
        use_up_memory()


@app.job(queue="work", name="chaos.failing")
def failing(message: Work) -> None:
    """Takes its time, and fails."""
    with effect(message.number, failing):
        take(message.seconds)
        raise ValueError("for good")


@app.job(queue="work", name="chaos.cut-off")
def cut_off(message: Work) -> None:
    """Fails with the very error that the transport knows as its own."""
    with effect(message.number, cut_off):
        raise RedisConnectionError("the job's own server is down")


FILE_BYTES = 600_000


@app.job(queue="work", name="chaos.keep", retry=Retry(delays_s=[0.5] * 60))
def keep(message: Work) -> Blob:
    """Stores a file; tries again for half a minute where that fails."""
    with effect(message.number, keep):
        return Blob.store(os.urandom(FILE_BYTES))


@app.job(queue="work", name="chaos.keep-once")
def keep_once(message: Work) -> Blob:
    """Stores a file, or not."""
    with effect(message.number, keep_once):
        return Blob.store(os.urandom(FILE_BYTES))


def send(
    number: int, seconds: float, tracked: bool, job: Job = work, delay_s: float | None = None
) -> JobHandle[str] | None:
    """Send a job. Returns its handle, if it is to be tracked."""
    message = job.contract(number=number, seconds=seconds)
    if tracked:
        return job.request(message, delay_s=delay_s)
    job.send(message, delay_s=delay_s)
    return None

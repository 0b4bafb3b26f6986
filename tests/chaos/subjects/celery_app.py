"""The same jobs for plain Celery, as its users set it up where no job may be lost."""

from __future__ import annotations

import os

from celery import Celery, Task
from effects import effect, take, use_up_memory

URL = os.environ["UMBEL_BROKER_URL"]
app = Celery("chaos", broker=URL)
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    worker_prefetch_multiplier=1,
    task_default_queue="work",
    task_ignore_result=True,
    task_publish_retry=False,  # as in `umbel_app`
)
if URL.startswith("amqp"):
    # Off by default, and without them a send returns before anybody has the message.
    app.conf.broker_transport_options = {"confirm_publish": True}
    app.conf.task_default_queue_type = "quorum"


@app.task(name="chaos.work", shared=False)
def work(number: int, seconds: float) -> None:
    """Takes its time."""
    with effect(number, work):
        take(seconds)


@app.task(name="chaos.hungry", shared=False)
def hungry(number: int, seconds: float) -> None:
    """Takes memory until the kernel ends it."""
    with effect(number, hungry):
        use_up_memory()


def send(number: int, seconds: float, tracked: bool, job: Task = work) -> None:
    """Send a job. Nothing can be asked of it."""
    job.delay(number, seconds)

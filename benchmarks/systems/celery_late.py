"""Celery with late acknowledgement, and quorum queues on RabbitMQ: as safe as it can be set."""

from __future__ import annotations

from benchmarks.systems import AT_LEAST_ONCE, RABBITMQ, VALKEY, Pool, System
from benchmarks.systems.celery import app, send, send_many

__all__ = ["SYSTEM", "app", "send", "send_many"]

app.conf.update(task_acks_late=True, task_default_queue_type="quorum")

_WORKER = "celery -A benchmarks.systems.celery_late worker "
SYSTEM = System(
    title="Celery, late acks",
    packages=("celery",),
    brokers=(VALKEY, RABBITMQ),
    safety=AT_LEAST_ONCE,
    because="acknowledged after the task; on Redis back after the visibility timeout of an hour",
    source="https://docs.celeryq.dev/en/stable/userguide/tasks.html",
    pools=(
        Pool("prefork -c 2", _WORKER + "-P prefork -c 2"),
        Pool("threads -c 2", _WORKER + "-P threads -c 2", brokers=(VALKEY,)),
    ),
)

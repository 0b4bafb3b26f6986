"""Plain Celery at its defaults; on RabbitMQ with publisher confirms, as everybody here."""

from __future__ import annotations

from typing import Any

from celery import Celery, group

from benchmarks.systems import AT_MOST_ONCE, RABBITMQ, VALKEY, Pool, System
from benchmarks.work import broker_url, on_rabbitmq, record

app = Celery("bench", broker=broker_url())
if on_rabbitmq():
    app.conf.broker_transport_options = {"confirm_publish": True}


@app.task
def job(message: dict[str, Any]) -> None:
    record(message["number"])


def send(message: dict[str, Any]) -> None:
    job.delay(message)


def send_many(messages: list[dict[str, Any]]) -> None:
    """Kombu 5.7's batches: Redis gets them in one pipeline, RabbitMQ one by one as before."""
    with app.producer_or_acquire() as producer, producer.batch():
        for message in messages:
            job.apply_async((message,), producer=producer)


def send_group(messages: list[dict[str, Any]]) -> None:
    """What Celery's own documentation shows."""
    group(job.s(message) for message in messages).apply_async()


_WORKER = "celery -A benchmarks.systems.celery worker "
SYSTEM = System(
    title="Celery",
    packages=("celery", "kombu", "redis", "hiredis", "amqp"),
    brokers=(VALKEY, RABBITMQ),
    safety=AT_MOST_ONCE,
    because="acknowledged just before it is executed",
    source="https://docs.celeryq.dev/en/stable/userguide/tasks.html",
    pools=(
        Pool("prefork -c 2", _WORKER + "-P prefork -c 2", idle=True),
        Pool("threads -c 2", _WORKER + "-P threads -c 2", idle=True),
        Pool("solo, two", _WORKER + "-P solo -n w{copy}@localhost", copies=2, brokers=(VALKEY,)),
    ),
)

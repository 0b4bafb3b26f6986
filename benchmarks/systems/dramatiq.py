"""Dramatiq with its default middleware; on RabbitMQ with publisher confirms."""

from __future__ import annotations

from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker

from benchmarks.systems import AT_LEAST_ONCE, RABBITMQ, VALKEY, Pool, System
from benchmarks.work import broker_url, on_rabbitmq, record

if on_rabbitmq():
    broker = RabbitmqBroker(url=broker_url(), confirm_delivery=True)
else:
    broker = RedisBroker(url=broker_url())
dramatiq.set_broker(broker)


@dramatiq.actor
def job(message: dict[str, Any]) -> None:
    record(message["number"])


def send(message: dict[str, Any]) -> None:
    job.send(message)


def send_many(messages: list[dict[str, Any]]) -> None:
    dramatiq.group(job.message(message) for message in messages).run()


SYSTEM = System(
    title="Dramatiq",
    packages=("dramatiq", "redis", "pika"),
    brokers=(VALKEY, RABBITMQ),
    safety=AT_LEAST_ONCE,
    because="only ever acknowledged after it has been processed",
    source="https://dramatiq.io/advanced.html#message-persistence",
    pools=(
        Pool(
            "2 processes, 8 threads each (default)",
            "dramatiq benchmarks.systems.dramatiq --processes 2",
            idle=True,
        ),
        Pool(  # by default one thread has two messages at hand, and a tenth of this rate on Redis
            "2 processes, 1 thread each, prefetch 100",
            "env dramatiq_queue_prefetch=100 "
            "dramatiq benchmarks.systems.dramatiq --processes 2 --threads 1",
            idle=True,
        ),
    ),
)

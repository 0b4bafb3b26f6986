"""TaskIQ on the brokers that acknowledge: Redis streams, RabbitMQ by aio-pika. With uvloop."""

from __future__ import annotations

import asyncio
from typing import Any

from taskiq_aio_pika import AioPikaBroker
from taskiq_redis import RedisStreamBroker

from benchmarks.systems import AT_LEAST_ONCE, RABBITMQ, VALKEY, Pool, System
from benchmarks.work import broker_url, on_rabbitmq, record

# aio-pika confirms by itself, and the queue is a quorum queue; qos is what one worker may hold.
broker = AioPikaBroker(broker_url(), qos=100) if on_rabbitmq() else RedisStreamBroker(broker_url())


@broker.task
async def job(message: dict[str, Any]) -> None:
    record(message["number"])


async def connect() -> None:
    await broker.startup()


async def send(message: dict[str, Any]) -> None:
    await job.kiq(message)


async def send_many(messages: list[dict[str, Any]]) -> None:
    for start in range(0, len(messages), 100):
        await asyncio.gather(*(job.kiq(message) for message in messages[start : start + 100]))


SYSTEM = System(
    title="TaskIQ",
    packages=("taskiq", "taskiq-redis", "taskiq-aio-pika", "uvloop", "redis", "aio-pika"),
    brokers=(VALKEY, RABBITMQ),
    safety=AT_LEAST_ONCE,
    because="acknowledged when the result is saved; on streams back after ten minutes",
    source="https://taskiq-python.github.io/guide/cli.html#acknowledgements",
    pools=(
        Pool(
            "2 workers",
            "taskiq worker benchmarks.systems.taskiq:broker --workers 2 --log-level WARNING",
            idle=True,
        ),
    ),
)

"""TaskIQ on a Redis list, without acknowledgements. With uvloop."""

from __future__ import annotations

import asyncio
from typing import Any

from taskiq_redis import ListQueueBroker

from benchmarks.systems import AT_MOST_ONCE, VALKEY, Pool, System
from benchmarks.work import broker_url, record

broker = ListQueueBroker(broker_url())


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
    title="TaskIQ, list",
    packages=("taskiq", "taskiq-redis", "uvloop", "redis"),
    brokers=(VALKEY,),
    safety=AT_MOST_ONCE,
    because="popped from a list; for those who do not want acknowledgements",
    source="https://github.com/taskiq-python/taskiq-redis#usage",
    pools=(
        Pool(
            "2 workers",
            "taskiq worker benchmarks.systems.taskiq_list:broker --workers 2 --log-level WARNING",
            idle=True,
        ),
    ),
)

"""arq, two workers: polling as fast as its settings allow, and by default twice a second."""

from __future__ import annotations

import asyncio
from typing import Any

from arq import create_pool
from arq.connections import ArqRedis, RedisSettings

from benchmarks.systems import AT_LEAST_ONCE, VALKEY, Pool, System
from benchmarks.work import broker_url, record

redis: ArqRedis
QUIET = {"version": 1, "disable_existing_loggers": False, "loggers": {"arq": {"level": "WARNING"}}}


async def job(_: dict[str, Any], message: dict[str, Any]) -> None:
    record(message["number"])


class Default:
    functions = (job,)
    redis_settings = RedisSettings.from_dsn(broker_url())
    keep_result = 0  # no result is kept, as elsewhere


class Tuned:
    functions, redis_settings, keep_result = (job,), Default.redis_settings, 0
    poll_delay = 0.01
    max_jobs = 100


async def connect() -> None:
    global redis
    redis = await create_pool(Default.redis_settings)


async def send(message: dict[str, Any]) -> None:
    await redis.enqueue_job("job", message)


async def send_many(messages: list[dict[str, Any]]) -> None:
    for start in range(0, len(messages), 50):
        batch = messages[start : start + 50]
        await asyncio.gather(*(redis.enqueue_job("job", message) for message in batch))


_COMMAND = "arq benchmarks.systems.arq.{} --custom-log-dict benchmarks.systems.arq.QUIET"
SYSTEM = System(
    title="arq",
    packages=("arq", "redis", "hiredis"),
    brokers=(VALKEY,),
    safety=AT_LEAST_ONCE,
    because="stays in the queue until it has succeeded or failed (“pessimistic execution”)",
    source="https://arq-docs.helpmanual.io/#usage",
    pools=(
        Pool(
            "2 workers, polling every 10 ms",
            _COMMAND.format("Tuned"),
            copies=2,
            share=0.5,
            idle=True,
        ),
        Pool(
            "2 workers, polling every 500 ms (default)",
            _COMMAND.format("Default"),
            copies=2,
            share=0.4,
            idle=True,
        ),
    ),
)

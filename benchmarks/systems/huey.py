"""huey on Redis, two worker processes, without its scheduler for periodic tasks."""

from __future__ import annotations

from typing import Any

from huey import RedisHuey

from benchmarks.systems import AT_MOST_ONCE, VALKEY, Pool, System
from benchmarks.work import broker_url, record

huey = RedisHuey("bench", url=broker_url())


@huey.task()
def job(message: dict[str, Any]) -> None:
    record(message["number"])


def send(message: dict[str, Any]) -> None:
    job(message)


def send_many(messages: list[dict[str, Any]]) -> None:
    job.map([(message,) for message in messages])


SYSTEM = System(
    title="huey",
    packages=("huey", "redis"),
    brokers=(VALKEY,),
    safety=AT_MOST_ONCE,
    because="no acknowledgement: what runs in a consumer that is killed is lost",
    source="https://huey.readthedocs.io/en/latest/consumer.html#consumer-shutdown",
    pools=(
        Pool(
            "2 processes",
            "huey_consumer benchmarks.systems.huey.huey -w 2 -k process -n -q",
            idle=True,
        ),
    ),
)

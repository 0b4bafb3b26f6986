"""Umbel as it ships: task events on, contracts checked at both ends, leases, late acks."""

from __future__ import annotations

from typing import Any

from benchmarks.systems import AT_LEAST_ONCE, RABBITMQ, VALKEY, Pool, System
from benchmarks.work import broker_url, record, store_url
from umbel import Message, Umbel

app = Umbel("bench", broker=broker_url(), store_url=store_url())


class Picture(Message, name="bench.picture", version=1):
    name: str
    number: int
    widths: list[int]


@app.job
def job(message: Picture) -> None:
    record(message.number)


def send(message: dict[str, Any]) -> None:
    job.send(Picture(**message))


def send_many(messages: list[dict[str, Any]]) -> None:
    job.send_many(Picture(**message) for message in messages)


_WORKER = "celery -A benchmarks.systems.umbel worker "
SYSTEM = System(
    title="Umbel",
    packages=("umbel", "celery", "kombu", "pydantic", "redis", "hiredis", "amqp"),
    brokers=(VALKEY, RABBITMQ),
    safety=AT_LEAST_ONCE,
    because="claimed atomically, held by a lease, acknowledged when the job has ended",
    source="../delivery.md",
    pools=(
        Pool("prefork -c 2", _WORKER + "-P prefork -c 2", idle=True),
        Pool("threads -c 2", _WORKER + "-P threads -c 2", idle=True),
        Pool("solo, two", _WORKER + "-P solo -n w{copy}@localhost", copies=2, brokers=(VALKEY,)),
    ),
)

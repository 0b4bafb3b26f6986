"""RQ with a pool of two workers: forking for each job, and not. No result is kept, as elsewhere."""

from __future__ import annotations

from typing import Any

from redis import Redis
from rq import Queue

from benchmarks.systems import AT_MOST_ONCE, VALKEY, Pool, System
from benchmarks.work import broker_url, record

queue = Queue("bench", connection=Redis.from_url(broker_url()))


def job(message: dict[str, Any]) -> None:
    record(message["number"])


def send(message: dict[str, Any]) -> None:
    queue.enqueue(job, message, result_ttl=0)


def send_many(messages: list[dict[str, Any]]) -> None:
    queue.enqueue_many(
        [Queue.prepare_data(job, args=(message,), result_ttl=0) for message in messages]
    )


SYSTEM = System(
    title="RQ",
    packages=("rq", "redis"),
    brokers=(VALKEY,),
    safety=AT_MOST_ONCE,
    because="a job whose worker is killed ends as failed (AbandonedJobError); it is not run again",
    source="https://python-rq.org/docs/results/#dealing-with-interruptions",
    pools=(
        Pool(
            "2 workers, SimpleWorker",
            "rq worker-pool bench -n 2 -u {url} -q -w rq.worker.SimpleWorker",
            share=0.3,
            idle=True,
        ),
        Pool(
            "2 workers, forking (default)",
            "rq worker-pool bench -n 2 -u {url} -q",
            share=0.05,
            idle=True,
        ),
    ),
)

"""Umbel without task events: what seeing every job in Flower costs."""

from __future__ import annotations

from benchmarks.systems import AT_LEAST_ONCE, VALKEY, Pool, System
from benchmarks.systems.umbel import app, send, send_many

__all__ = ["SYSTEM", "app", "send", "send_many"]

app.conf.update(worker_send_task_events=False, task_send_sent_event=False)

SYSTEM = System(
    title="Umbel, no events",
    packages=("umbel",),
    brokers=(VALKEY,),
    safety=AT_LEAST_ONCE,
    because="as above",
    source="../delivery.md",
    pools=(
        Pool("prefork -c 2", "celery -A benchmarks.systems.umbel_stripped worker -P prefork -c 2"),
    ),
)

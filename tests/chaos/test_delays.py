"""What waits for its time waits on the server."""

from __future__ import annotations

import time

import pytest
from support.process import eventually
from support.servers import Valkey

from chaos import faults

LATE_S = 2.0
MOVED_S = 4.0
"""Longest time in which RabbitMQ passes on what was delayed, on a busy machine and disk."""


@pytest.mark.brokers("valkey", "rabbitmq")
def test_delays_outlive_everybody(scene):
    """Delays of half a second to eight seconds, while the workers are killed and the broker is:
    no job is early, none lost, and none late that was due when both were there."""
    scene.start_workers(2)
    due_at = {}
    for number in range(150):
        delay_s = 0.5 + number / 20
        began_at = time.monotonic()
        due_at[scene.send(delay_s=delay_s).number] = began_at + delay_s
    eventually(lambda: len(scene.tally().done) >= 20, 20, "the first")
    strikes = [faults.kill_all_workers(scene), faults.kill_broker(scene)]
    # A lease, or the time in which RabbitMQ finds its queues and Celery finds RabbitMQ.
    there_at = time.monotonic() + (scene.lease_s if isinstance(scene.broker, Valkey) else 4)
    tally = scene.finish()
    unexplained = tally.unexplained(*strikes)
    if not isinstance(scene.broker, Valkey):
        # Where a delay ends the server sends a copy on, and forgets its own when that is safe: if
        # it is killed in between there are two.
        broken_off = (strikes[1].at - MOVED_S, strikes[1].over)
        unexplained -= {n for n, due in due_at.items() if broken_off[0] < due < broken_off[1]}
    assert not unexplained
    for number, due in due_at.items():
        begun_at = tally.runs[number][0].begun_at
        assert due < begun_at < max(due, there_at) + LATE_S


def test_nothing_waits_in_a_worker(scene):
    """A worker holds nothing whose time has not come, and has room for what has."""
    scene.start_workers(1, concurrency=1)
    for _ in range(20):
        scene.send(delay_s=60)
    with scene.broker.client() as client:
        eventually(lambda: client.zcard("_umbel.delayed") == 20, 10, "all parked")
        assert not client.keys("_umbel.claims.*")
    job = scene.send()
    eventually(lambda: scene.tally().done[job.number], 10, "the job without a delay")

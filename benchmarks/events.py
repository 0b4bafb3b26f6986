"""What an event costs, by the number of its subscribers: to publish, and to get handled."""

from __future__ import annotations

from benchmarks import effects
from benchmarks.effects import Effects
from benchmarks.figures import middle_rate
from benchmarks.producer import WARM
from benchmarks.servers import RabbitMQ, Valkey
from benchmarks.systems import Pool
from benchmarks.trial import QUIET_S, Sample, empty_bench
from benchmarks.work import SUBSCRIBERS

SYSTEM = "umbel_events"
POOL = Pool("prefork -c 2", f"celery -A benchmarks.systems.{SYSTEM} worker -P prefork -c 2")
EVENTS, HANDLINGS = 1_000, 10_000  # at most, in one measurement


def run(server: Valkey | RabbitMQ, store: Valkey, subscribers: int) -> Sample:
    """Microseconds to publish one event, and to get one of its copies handled.

    Returns:
        `publish_us` and `handle_us`; the copies `lost`, in which case there is no time.
    """
    events = min(EVENTS, HANDLINGS // subscribers)
    total = (WARM + events) * subscribers
    with empty_bench(SYSTEM, server, store, {SUBSCRIBERS: str(subscribers)}) as bench:
        rate = bench.produce("send", each=events)["send"]
        store.settle()
        with bench.workers(POOL):
            effects.wait_for(bench.effects, total, QUIET_S)
            done = Effects.read(bench.effects).times
    if len(done) < total:
        return {"lost": total - len(done)}
    return {"publish_us": 1e6 / rate, "handle_us": 1e6 / middle_rate(done)}

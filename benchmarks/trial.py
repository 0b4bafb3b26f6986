"""One trial: a system, a broker and a pool, from an empty broker to what was measured."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import effects
from benchmarks.effects import Effects
from benchmarks.figures import middle_rate, percentile
from benchmarks.servers import RabbitMQ, Valkey
from benchmarks.systems import Pool
from benchmarks.work import BROKER, EFFECTS, STORE
from benchmarks.workers import environment, interpreter, memory_mib, running

Sample = dict[str, float]
QUIET_S = 20.0  # without a single effect for so long, a drain has ended, or will never


@dataclass(frozen=True)
class Counts:
    """How much work a trial is.

    Attributes:
        each: messages sent one at a time.
        many: messages sent in batches.
        trips: round trips on idle workers.
        trips_s: longest time for them.
    """

    each: int = 2_000
    many: int = 8_000
    trips: int = 200
    trips_s: int = 4

    def times(self, share: float) -> Counts:
        """A part of the work, but enough for a rate."""

        def part(number: int) -> int:
            return max(int(number * share), min(number, 100))

        return replace(self, each=part(self.each), many=part(self.many))


@dataclass(frozen=True)
class Bench:
    """The place where one system is tried: broker, store, and a directory of its own."""

    system: str
    url: str
    store: Valkey
    directory: Path
    variables: Mapping[str, str] = field(default_factory=dict)

    @property
    def effects(self) -> Path:
        """Where jobs leave their records."""
        return self.directory / "effects"

    @property
    def env(self) -> dict[str, str]:
        """For its producer and its workers."""
        variables = {BROKER: self.url, STORE: self.store.url, EFFECTS: str(self.effects)}
        return environment(**variables, **self.variables)

    def produce(self, command: str, **options: int) -> Any:
        """What the producer answers."""
        flags = [f"--{name}={value}" for name, value in options.items()]
        done = subprocess.run(
            [interpreter(self.system), "-m", "benchmarks.producer", self.system, command, *flags],
            env=self.env,
            cwd=self.directory,
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        if done.returncode:
            raise RuntimeError(f"{self.system}: {command} failed:\n{done.stderr[-3000:]}")
        return json.loads(done.stdout.splitlines()[-1])

    def workers(self, pool: Pool) -> Any:
        """A context in which the pool runs."""
        return running(self.system, pool, self.url, self.env, self.directory)

    def logs(self) -> str:
        """The end of what its workers wrote."""
        logs = self.directory.glob("worker*/log.txt")
        return "\n".join(log.read_text(errors="replace")[-3000:] for log in logs)


@contextmanager
def empty_bench(
    system: str,
    server: Valkey | RabbitMQ,
    store: Valkey,
    variables: Mapping[str, str] | None = None,
) -> Iterator[Bench]:
    """An emptied broker and store, and a directory for as long as they are used."""
    with TemporaryDirectory(prefix=f"bench-{system}-") as directory:
        store.clear()
        bench = Bench(system, server.clear(), store, Path(directory), variables or {})
        bench.effects.mkdir()
        yield bench


def run(
    system: str, pool: Pool, server: Valkey | RabbitMQ, store: Valkey, counts: Counts
) -> Sample:
    """Send, drain, weigh, and take round trips.

    Returns:
        By name: `messages`; `send`, `send_many` and `drain` in messages a second;
        `message_bytes`, `pss_mib`, `rss_mib`, `processes`; `p50_ms`, `p99_ms` of so many `trips`;
        and the messages `lost` and run `again`. Where one was lost there is no rate.
    """
    counts = counts.times(pool.share)
    with empty_bench(system, server, store) as bench:
        empty = store.used_bytes()
        sample: Sample = bench.produce("send", each=counts.each, many=counts.many)
        total = int(sample["messages"])
        if isinstance(server, Valkey):
            sample["message_bytes"] = (server.used_bytes() - empty) / total
        store.settle()
        with bench.workers(pool) as started:
            effects.wait_for(bench.effects, total, QUIET_S)
            drained = Effects.read(bench.effects)
            sample |= {"lost": total - len(drained.first), "again": drained.again}
            if sample["lost"]:
                print(bench.logs())
                return sample
            sample |= {"drain": middle_rate(drained.first.values()), **memory_mib(started)}
            if pool.idle and counts.trips:
                sample |= _trips(bench, total, counts)
    return sample


def _trips(bench: Bench, first: int, counts: Counts) -> Sample:
    sent = bench.produce("trips", first=first, most=counts.trips, seconds=counts.trips_s)
    began = Effects.read(bench.effects).first
    trips = [(began[int(number)] - at) / 1e6 for number, at in sent.items() if int(number) in began]
    return {"p50_ms": percentile(trips, 50), "p99_ms": percentile(trips, 99), "trips": len(trips)}

"""`python -m benchmarks`: every system in turn, round after round; then tables and pictures."""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import backlog, events, plots, report, trial, turns
from benchmarks.results import Results
from benchmarks.servers import RABBITMQ_SERVER, RabbitMQ, Valkey
from benchmarks.systems import NAMES, RABBITMQ, VALKEY
from benchmarks.trial import Counts, Sample, empty_bench
from benchmarks.turns import Turn
from benchmarks.workers import ROOT

DOCS = ROOT / "docs" / "benchmarks"
QUICK = ROOT / "build" / "bench" / "quick"
SLOW_DISK = 0.4  # RabbitMQ confirms what is on disk: a part of the messages says as much


def main() -> int:
    """Exit status 1 when a measurement failed; the others are reported all the same."""
    given = _options()
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="umbel-benchmarks-")))
        store = Valkey(directory / "valkey")
        stack.callback(store.stop)
        servers: dict[str, Valkey | RabbitMQ] = {VALKEY: store}
        if RABBITMQ in given.brokers:
            servers[RABBITMQ] = RabbitMQ(directory / "rabbitmq")
            stack.callback(servers[RABBITMQ].stop)
        results = Results.begin(
            {name: _describe(name, store) for name in given.systems},
            [servers[broker].version for broker in servers],
            vars(given),
        )
        _measure(results, servers, given)
    report.write(results, given.out)
    plots.draw(results, given.out)
    print((given.out / "results.md").read_text())
    return 1 if results.failures else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--systems", type=_words, default=list(NAMES), help="names, with commas")
    parser.add_argument("--brokers", type=_words, default=[VALKEY, RABBITMQ])
    parser.add_argument("--rounds", type=int, help="of trials (5); 0: only the backlog")
    parser.add_argument("--each", type=int, help="messages sent one at a time (1000)")
    parser.add_argument("--many", type=int, help="messages sent in batches (5000)")
    parser.add_argument("--trips", type=int, help="idle round trips (150); 0: none")
    parser.add_argument("--backlog-rounds", type=int, help="(3); 0: no backlog")
    parser.add_argument("--waiting", type=_sizes, help="backlogs (1e3,1e4,1e5,1e6)")
    parser.add_argument("--event-rounds", type=int, help="(3); 0: no events")
    parser.add_argument("--subscribers", type=_sizes, help="of an event (1,10,100)")
    parser.add_argument("--quick", action="store_true", help="small counts, one round")
    parser.add_argument("--out", type=Path, help="directory (docs/benchmarks; quick: build)")
    full = {"rounds": 5, "each": 1_000, "many": 5_000, "trips": 150, "backlog_rounds": 3}
    full |= {"waiting": [1_000, 10_000, 100_000, 1_000_000], "out": DOCS}
    full |= {"event_rounds": 3, "subscribers": [1, 10, 100]}
    small = {"rounds": 1, "each": 500, "many": 1_500, "trips": 50, "backlog_rounds": 1}
    small |= {"waiting": [1_000, 100_000], "out": QUICK}
    small |= {"event_rounds": 1, "subscribers": [1, 10]}
    given = parser.parse_args()
    for name, value in (small if given.quick else full).items():
        if getattr(given, name) is None:
            setattr(given, name, value)
    if RABBITMQ in given.brokers and not RABBITMQ_SERVER.exists():
        print("RabbitMQ is left out; to measure on it too: apt-get install rabbitmq-server")
        given.brokers.remove(RABBITMQ)
    return given


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _sizes(text: str) -> list[int]:
    return sorted(int(float(word)) for word in _words(text))


def _describe(name: str, store: Valkey) -> Any:
    with empty_bench(name, store, store) as bench:
        return bench.produce("describe")


def _measure(
    results: Results, servers: dict[str, Valkey | RabbitMQ], given: argparse.Namespace
) -> None:
    rounds = [
        *turns.trials(results, given.brokers, given.rounds),
        *turns.backlogs(results, given.brokers, given.backlog_rounds, given.waiting, given.quick),
        *turns.events(given.brokers, given.event_rounds, given.subscribers),
    ]
    due = [(number, turn) for number, in_turn in enumerate(rounds) for turn in in_turn]
    began = time.monotonic()
    for done, (number, turn) in enumerate(due, 1):
        print(f"{time.monotonic() - began:5.0f} s  {done}/{len(due)}  {turn}", end="", flush=True)
        try:
            sample = _sample(turn, servers, given)
        except Exception as failure:  # the others are still worth their time
            traceback.print_exc()
            results.failures.append(f"{turn}: {failure}")
        else:
            print(_shown(sample.items()))
            where = {"broker": turn.broker, "system": turn.system, "pool": turn.pool.name}
            where |= {"waiting": turn.waiting, "subscribers": turn.subscribers}
            results.add(sample, round=number, **where)
            if lost := sample.get("lost"):
                results.failures.append(f"{turn}: {lost:,.0f} messages were not done")
        results.save(given.out)


def _sample(turn: Turn, servers: dict[str, Valkey | RabbitMQ], given: argparse.Namespace) -> Sample:
    server, store = servers[turn.broker], servers[VALKEY]
    if turn.subscribers:
        return events.run(server, store, turn.subscribers)
    if turn.waiting:
        return backlog.run(turn.system, turn.pool, server, store, turn.waiting)
    counts = Counts(given.each if turn.sends else 0, given.many, given.trips)
    share = turn.pool.share * (1 if turn.broker == VALKEY else SLOW_DISK)
    return trial.run(turn.system, turn.pool, server, store, counts.times(share))


def _shown(numbers: Iterable[tuple[str, float]]) -> str:
    return "".join(f"  {name} {value:,.4g}" for name, value in numbers)


if __name__ == "__main__":
    sys.exit(main())

"""The long stories with large counts, by `make promises`: a table in docs/conformance.md."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path

from support.servers import RabbitMQ

from conformance import scenarios
from conformance.moments import MOMENTS
from conformance.scenarios import Facts
from conformance.stages import BROKERS, HERE, RABBITMQ, Stage, stage_on
from conformance.table import put

PAGE = HERE.parents[1] / "docs" / "conformance.md"
BEGIN, END = "<!-- stories: begin -->", "<!-- stories: end -->"

Story = Callable[[Stage], Facts]
STORIES: dict[str, tuple[str, Story]] = {
    "events": (
        "three subscribers and one that crashes, one of them failing for good",
        partial(scenarios.events, number=10_000, timeout_s=900),
    ),
    "order": (
        "1,000 messages of each of 8 keys over 4 shards and 3 consumers, one of which is killed",
        partial(scenarios.order, per_key=1000, timeout_s=900),
    ),
    "delays": (
        "delays of 1 to 60 s while the broker and the worker are killed and start again",
        partial(scenarios.delays, number=1000, longest_s=60, late_s=2),
    ),
    "callbacks": (
        "SIGKILL at each moment between a job's last line and its settlement",
        partial(scenarios.callbacks, moments=MOMENTS, timeout_s=600),
    ),
    "sagas": (
        "sagas, half of which fail, while workers are killed",
        partial(scenarios.sagas, number=200, timeout_s=600),
    ),
}


def main() -> None:
    """Run them, print what came of each as it comes, and write the table."""
    parser = argparse.ArgumentParser(prog="make promises", description=__doc__)
    parser.add_argument("--brokers", nargs="+", choices=BROKERS, default=BROKERS)
    parser.add_argument("--stories", nargs="+", choices=STORIES, default=list(STORIES))
    chosen = parser.parse_args()
    sys.path.insert(0, str(HERE))
    facts: dict[tuple[str, str], Facts] = {}
    with tempfile.TemporaryDirectory() as directory, ExitStack() as stack:
        node = stack.enter_context(closing(RabbitMQ(_made(Path(directory, "rabbitmq")))))
        if RABBITMQ in chosen.brokers:
            node.start()
        for story in chosen.stories:
            for broker in chosen.brokers:
                place = Path(directory, f"{story}-{broker.split()[-1]}")
                with stage_on(broker, place, lambda: node) as stage:
                    facts[story, broker] = STORIES[story][1](stage)
                print(f"{story} on {broker}: {_told(facts[story, broker])}", flush=True)
                put(PAGE, BEGIN, END, _table(facts))


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def _table(facts: dict[tuple[str, str], Facts]) -> Iterator[str]:
    yield f"| story | {' | '.join(BROKERS)} |"
    yield "|---" * (len(BROKERS) + 1) + "|"
    for story, (title, _) in STORIES.items():
        told = [_told(facts.get((story, broker), {})) for broker in BROKERS]
        yield f"| {title} | {' | '.join(told)} |"


def _told(facts: Facts) -> str:
    each = (
        f"{value:,} {name}" if isinstance(value, int) else f"{name} {value}"
        for name, value in facts.items()
    )
    return ", ".join(each) or "not run"


if __name__ == "__main__":
    main()

"""`python -m chaos.soak`: every fault in turn; then the tables of docs/reliability.md."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import time
from contextlib import ExitStack, closing, redirect_stdout
from pathlib import Path

from support.process import RUN_MARK
from support.servers import RABBITMQ as RABBITMQ_SERVER
from support.servers import RabbitMQ

from chaos.soak import report, trial
from chaos.soak.outcome import Outcome
from chaos.soak.results import Results
from chaos.soak.rows import RABBITMQ, ROWS, TURN_MIN, VALKEY, Case, cases
from umbel import Settings

ROOT = Path(__file__).parents[3]
OURS = ("UMBEL_", "CELERY_")
FULL_MIN = 30.0
"""A run of so many minutes, of everything, is for the docs."""


def main() -> int:
    """Exit status 1 when Umbel lost a job, did one twice that no strike explains, has a wrong
    record or could not be put through a fault."""
    given = _options()
    for name in [name for name in os.environ if name.startswith(OURS)]:
        if name != RUN_MARK:
            del os.environ[name]  # a developer's own settings
    shutil.rmtree(given.work, ignore_errors=True)
    with ExitStack() as stack:
        rabbitmq = None
        if RABBITMQ in given.brokers:
            (given.work / "rabbitmq").mkdir(parents=True)
            rabbitmq = stack.enter_context(closing(RabbitMQ(given.work / "rabbitmq"))).start()
        results = Results.begin(vars(given), rabbitmq)
        _soak(results, given, rabbitmq)
    report.write(results, given.out)
    print("\n".join(report.tables(results)))
    for failure in results.failures():
        print(f"FAILED: {failure}")
    return 1 if results.failures() else 0


def _options() -> argparse.Namespace:
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="python -m chaos.soak", description=__doc__)
    parser.add_argument(
        "--minutes", type=float, default=FULL_MIN, help="of all (30); a strike each takes twelve"
    )
    parser.add_argument("--brokers", type=_words, default=[VALKEY, RABBITMQ])
    parser.add_argument("--faults", type=_words, help=f"of these, with commas: {', '.join(names)}")
    parser.add_argument("--no-celery", action="store_true", help="Umbel alone")
    parser.add_argument("--seed", type=int, help="of all that is left to chance (random)")
    parser.add_argument("--lease-s", type=float, help="of Umbel's workers (as shipped)")
    parser.add_argument("--out", type=Path, help="directory (docs; of a part only: --work)")
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "soak", help="data and logs")
    given = parser.parse_args()
    if unknown := set(given.faults or ()) - set(names):
        parser.error(f"no such fault: {', '.join(unknown)}")
    if RABBITMQ in given.brokers and not RABBITMQ_SERVER.exists():
        print("RabbitMQ is left out; to soak it too: apt-get install rabbitmq-server")
        given.brokers.remove(RABBITMQ)
    part = given.faults or given.no_celery or given.lease_s or len(given.brokers) < 2
    given.out = given.out or (given.work if part or given.minutes < FULL_MIN else ROOT / "docs")
    given.faults = given.faults or [row.name for row in ROWS if row.least_min <= given.minutes]
    given.lease_s = given.lease_s or Settings.model_fields["lease_s"].default
    given.seed = random.randrange(1_000_000) if given.seed is None else given.seed
    return given


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _soak(results: Results, given: argparse.Namespace, rabbitmq: RabbitMQ | None) -> None:
    """Each case gets its share of the time that is left; one strike is the least."""
    rows = [row for row in ROWS if row.name in given.faults]
    turns = max(1, round(given.minutes / TURN_MIN))
    due = list(cases(rows, given.brokers, turns, not given.no_celery))
    began = time.monotonic()
    print(f"seed {given.seed}, {len(due)} cases; logs in {given.work}")
    while due:
        left_s = began + 60 * given.minutes - time.monotonic()
        seconds = left_s * due[0].share_s / sum(case.share_s for case in due)
        case = due.pop(0)
        print(f"{time.monotonic() - began:5.0f} s  {case}  ", end="", flush=True)
        outcome = _run(case, given, rabbitmq, seconds)
        results.outcomes.append(outcome)
        results.save(given.out)
        print(outcome, *(f"\n         {line}" for line in outcome.failures() or outcome.troubles))


def _run(
    case: Case, given: argparse.Namespace, rabbitmq: RabbitMQ | None, seconds: float
) -> Outcome:
    directory = given.work / str(case)
    directory.mkdir(parents=True)
    seed = random.Random(f"{given.seed} {case}").randrange(1_000_000)
    with (directory / "harness.log").open("w") as log, redirect_stdout(log):
        return trial.run(
            case, rabbitmq, directory, seconds=seconds, seed=seed, lease_s=given.lease_s
        )


if __name__ == "__main__":
    sys.exit(main())

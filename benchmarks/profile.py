"""Where the processor's time for one message goes, by whose code it is: `make profile`.

Samples the sender and the processes of a worker that drains, with py-spy, and divides what they
used by the messages. A sample belongs to the innermost frame that is no standard library's; C code
belongs to who called it.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks import effects
from benchmarks.servers import Valkey, wait
from benchmarks.systems import Pool
from benchmarks.trial import Bench, empty_bench
from benchmarks.workers import interpreter

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks" / "profile.md"
MESSAGES, WARM = 60_000, 500
MEASURED_S, SAMPLED_S, HERTZ = 3, 5, 400
_CELERY = "celery -A benchmarks.systems.{system} worker "
CHILD = "prefork, a child"
POOLS = {
    "prefork, main process": Pool("prefork", _CELERY + "-P prefork -c 2"),
    CHILD: Pool("prefork", _CELERY + "-P prefork -c 1"),
    "solo": Pool("solo", _CELERY + "-P solo"),
}
# Whose code a file is, by its path below `site-packages` or this checkout: the first that fits.
OWNERS = {
    "Umbel: transport": r"routing/",
    "Umbel: the rest": r"(umbel|jobs|consumers|producers|config|benchmarks/systems)/",
    "Celery: events": r"celery/events/",
    "Celery: the pool": r"celery/concurrency/|billiard/",
    "Celery: requests and the rest": r"celery/",
    "Kombu: messages, event loop": r"kombu/|vine/",
    "redis-py": r"redis/",
    "Pydantic": r"pydantic/",
}


def main() -> None:
    """Measure, print, and write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.profile", description=__doc__)
    parser.add_argument("--out", type=Path, default=PAGE)
    given = parser.parse_args()
    columns: dict[str, dict[str, float]] = {}
    with TemporaryDirectory() as directory:
        valkey = Valkey(Path(directory))
        try:
            for system in ("umbel", "celery"):
                with empty_bench(system, valkey, valkey) as bench:
                    columns[f"{system}: send"] = _sending(bench)
                for name, pool in POOLS.items():
                    with empty_bench(system, valkey, valkey) as bench:
                        columns[f"{system}: {name}"] = _draining(bench, pool, name == CHILD)
        finally:
            valkey.stop()
    text = "\n".join(_page(columns)) + "\n"
    print(text)
    given.out.write_text(text)


def _sending(bench: Bench) -> dict[str, float]:
    program = [interpreter(bench.system), "-m", "benchmarks.producer", bench.system]
    producer = subprocess.Popen(
        [*program, "send", f"--each={MESSAGES}"],
        env=bench.env,
        cwd=bench.directory,
        stdout=subprocess.DEVNULL,
    )

    def sent() -> int:
        return sum(int(bench.store.client.llen(queue)) for queue in ("bench", "celery"))

    try:
        return _sampled(bench.directory, producer.pid, sent)
    finally:
        producer.kill()
        producer.wait()


def _draining(bench: Bench, pool: Pool, is_child: bool) -> dict[str, float]:
    bench.produce("send", many=MESSAGES)
    command = pool.command.format(system=bench.system)
    with bench.workers(Pool(pool.name, command)) as started:
        wait(lambda: effects.count(bench.effects), 30, "a job")
        pid = int(next(bench.effects.iterdir()).name) if is_child else started[0].pid
        return _sampled(bench.directory, pid, lambda: effects.count(bench.effects))


def _sampled(directory: Path, pid: int, done: Callable[[], int]) -> dict[str, float]:
    """Microseconds of one process for a message, by whose code; of all first, without a sampler."""
    wait(lambda: done() > WARM, 30, "a message")
    process, before = psutil.Process(pid), done()
    used = -sum(process.cpu_times()[:2])
    time.sleep(MEASURED_S)
    used += sum(process.cpu_times()[:2])
    each_us = 1e6 * used / (done() - before)
    stacks = directory / "stacks"
    command: list[object] = [
        "py-spy",
        "record",
        "--pid",
        pid,
        "--duration",
        SAMPLED_S,
        "--rate",
        HERTZ,
    ]
    command += ["--full-filenames", "--format", "raw", "--output", stacks]
    subprocess.run(
        [str(part) for part in command],
        check=True,
        capture_output=True,
    )
    counted: Counter[str] = Counter()
    for owner, samples in _owners(stacks.read_text()):
        counted[owner] += samples
    return {owner: each_us * part / counted.total() for owner, part in counted.items()}


def _owners(stacks: str) -> Iterator[tuple[str, int]]:
    for line in stacks.splitlines():
        frames, _, samples = line.rpartition(" ")
        found = (_owner(frame) for frame in reversed(frames.split(";")))
        yield next((owner for owner in found if owner), "Python itself"), int(samples)


def _owner(frame: str) -> str | None:
    """Of ``function (path:line)``; None for the standard library's."""
    path = frame.partition(" (")[2].rpartition("site-packages/")[2].removeprefix(f"{ROOT}/")
    return next((owner for owner, pattern in OWNERS.items() if re.match(pattern, path)), None)


def _page(columns: dict[str, dict[str, float]]) -> Iterator[str]:
    yield "# Where the time for a message goes"
    yield ""
    yield "Made by `make profile`: microseconds of the processor for one message, by whose code it"
    yield "is, on Valkey. What it says of the aims is in the [README](README.md)."
    yield ""
    yield f"| µs of | {' | '.join(columns)} |"
    yield "|---" * (len(columns) + 1) + "|"
    for owner in (*OWNERS, "Python itself"):
        yield f"| {owner} | {' | '.join(f'{one.get(owner, 0):.0f}' for one in columns.values())} |"
    yield f"| **all** | {' | '.join(f'{sum(one.values()):.0f}' for one in columns.values())} |"


if __name__ == "__main__":
    main()

"""The sending process: one producer under its system's own interpreter, one connection.

    python -m benchmarks.producer celery describe
    python -m benchmarks.producer celery send --each 100 --many 900
    python -m benchmarks.producer celery trips --first 1000 --most 100 --seconds 5

Its last line is one JSON object. Standard library only, beside the system under test.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import os
import random
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from importlib.metadata import version
from typing import Any

from benchmarks.work import EFFECTS, RECORD, message

WARM = 20  # messages before the clock starts: they connect and declare
BATCH = 1_000  # messages in one `send_many`
Step = Callable[[Any], Any]


class Caller:
    """Calls a system's functions, one after the other; a loop runs only if they are coroutines."""

    def __init__(self, system: Any) -> None:
        self._system = system
        self._runner = asyncio.Runner(loop_factory=_fastest_loop())
        if hasattr(system, "connect"):
            self._runner.run(system.connect())

    def seconds(self, step: Step, arguments: list[Any]) -> float:
        """How long the calls take."""
        if inspect.iscoroutinefunction(step):
            return self._runner.run(_await_each(step, arguments))
        began = time.perf_counter()
        for argument in arguments:
            step(argument)
        return time.perf_counter() - began

    def sent_at(self, job: dict[str, Any]) -> int:
        """Send one; the monotonic time in ns just before."""
        if inspect.iscoroutinefunction(self._system.send):
            return self._runner.run(_await_one(self._system.send, job))
        now = time.monotonic_ns()
        self._system.send(job)
        return now


async def _await_each(step: Step, arguments: list[Any]) -> float:
    began = time.perf_counter()
    for argument in arguments:
        await step(argument)
    return time.perf_counter() - began


async def _await_one(step: Step, argument: Any) -> int:
    now = time.monotonic_ns()
    await step(argument)
    return now


def _fastest_loop() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed, as TaskIQ's workers take it."""
    try:
        return import_module("uvloop").new_event_loop
    except ImportError:
        return None


def send(system: Any, each: int, many: int) -> dict[str, float]:
    """Send `WARM`, then `each` one at a time, then `many` in batches.

    Returns:
        Messages a second: `send`, `send_many`, and `send_group` of a system that has a second way
        to send many; and how many `messages` were sent.
    """
    call = Caller(system)
    unsent = [message(number) for number in range(WARM + 2 * each + many)]

    def take(number: int) -> list[dict[str, Any]]:
        taken, unsent[:number] = unsent[:number], []
        return taken

    call.seconds(system.send, take(WARM))
    answer: dict[str, float] = {"messages": WARM + each + many}
    if each:
        answer["send"] = each / call.seconds(system.send, take(each))
    if each and hasattr(system, "send_group"):
        answer["send_group"] = each / call.seconds(system.send_group, [take(each)])
        answer["messages"] += each
    if many:
        batches = [take(min(BATCH, many - at)) for at in range(0, many, BATCH)]
        answer["send_many"] = many / call.seconds(system.send_many, batches)
    return answer


def trips(system: Any, first: int, most: int, seconds: float) -> dict[int, int]:
    """Send to idle workers; when each was sent (monotonic, in ns), by its number.

    A message is sent when the effect of the one before is there, after a random pause: the same
    pauses for every system. Ends after `most`, or after `seconds`.
    """
    call = Caller(system)
    pauses = random.Random(1)
    sent: dict[int, int] = {}
    deadline = time.monotonic() + seconds
    for number in range(first, first + WARM + most):
        sent[number] = call.sent_at(message(number))
        time.sleep(pauses.uniform(0.004, 0.024))
        while _effects() <= number and time.monotonic() < deadline + 10:
            time.sleep(0.002)
        if time.monotonic() > deadline:
            break
    warm = WARM if len(sent) > 2 * WARM else 1  # of a slow one, only the first is warm-up
    return dict(list(sent.items())[warm:])


def _effects() -> int:
    files = os.scandir(os.environ[EFFECTS])
    return sum(file.stat().st_size for file in files) // RECORD.size


def describe(system: Any) -> dict[str, Any]:
    """What it is, and which versions are installed."""
    versions = {package: version(package) for package in system.SYSTEM.packages}
    return asdict(system.SYSTEM) | {"versions": versions}


def main() -> None:
    """One command, one answer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("system")
    parser.add_argument("command", choices=["describe", "send", "trips"])
    for option in ("first", "each", "many", "most", "seconds"):
        parser.add_argument(f"--{option}", type=int, default=0)
    given = parser.parse_args()
    system = import_module(f"benchmarks.systems.{given.system}")
    answers: dict[str, Callable[[], Any]] = {
        "describe": lambda: describe(system),
        "send": lambda: send(system, given.each, given.many),
        "trips": lambda: trips(system, given.first, given.most, given.seconds),
    }
    print(json.dumps(answers[given.command]()))


if __name__ == "__main__":
    main()

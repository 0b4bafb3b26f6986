"""What was measured, round by round, and where: `results.json`."""

from __future__ import annotations

import json
import os
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from benchmarks.figures import Spread
from benchmarks.systems import Pool


@dataclass
class Results:
    """All of a run: tables and pictures are made from this alone.

    Attributes:
        about: date, machine, servers and options.
        systems: each system's description, by name.
        samples: each measurement: `round`, `broker`, `system`, `pool`, `waiting`, `subscribers`,
            `sample`.
        failures: what could not be measured, and why.
    """

    about: dict[str, Any]
    systems: dict[str, dict[str, Any]]
    samples: list[dict[str, Any]] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    @classmethod
    def begin(
        cls, systems: dict[str, dict[str, Any]], servers: list[str], options: dict[str, Any]
    ) -> Self:
        """An empty one, of now and here."""
        about = {
            "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "machine": machine(),
            "servers": servers,
            "options": {name: value for name, value in options.items() if name != "out"},
        }
        return cls(about, systems)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """What `save` wrote."""
        return cls(**json.loads((directory / "results.json").read_text()))

    def save(self, directory: Path) -> None:
        """Write `results.json`."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "results.json").write_text(json.dumps(asdict(self), indent=1) + "\n")

    def add(self, sample: dict[str, float], **where: str | int | None) -> None:
        """Keep one measurement: `round`, `broker`, `system`, `pool`, `waiting`, `subscribers`."""
        self.samples.append({**where, "sample": sample})

    def pools(self, system: str, broker: str) -> list[Pool]:
        """Those of a system that are measured on a broker."""
        described = self.systems[system]
        pools = [Pool(**pool) for pool in described["pools"]]
        return [pool for pool in pools if broker in pool.brokers and broker in described["brokers"]]

    def spread(
        self, measure: str, broker: str, system: str, pool: str, waiting: int | None = None
    ) -> Spread | None:
        """A measure over all rounds."""
        where = {"broker": broker, "system": system, "pool": pool, "waiting": waiting}
        return self._spread(measure, where)

    def of_events(self, measure: str, broker: str, subscribers: int) -> Spread | None:
        """The same of events."""
        return self._spread(measure, {"broker": broker, "subscribers": subscribers})

    def _spread(self, measure: str, where: dict[str, Any]) -> Spread | None:
        return Spread.of(
            entry["sample"].get(measure) for entry in self.samples if where.items() <= entry.items()
        )


def machine() -> str:
    """Processor, cores, memory, kernel, Python, and how busy it is with other things."""
    models = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    return (
        f"{models[0] if models else platform.machine()}, {os.cpu_count()} cores, "
        f"{memory:.0f} GiB; {platform.system()} {platform.release()}; "
        f"{platform.python_implementation()} {platform.python_version()}; "
        f"load {os.getloadavg()[0]:.1f} at the start"
    )

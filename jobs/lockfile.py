"""The lock file: what the contracts of an app were when somebody last agreed to them.

It is committed beside the code; `umbel.jobs.evolution` compares it with today's contracts.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import to_json

from umbel.config.errors import ContractError
from umbel.config.sources import project_directory
from umbel.jobs.compatibility import Schema
from umbel.jobs.schemas import Contract, Kind, canonical

FILE_NAME = "contracts.lock.json"


class Locked(BaseModel):
    """One contract.

    Attributes:
        kind: what it is of.
        aliases: names that it had before, and by which messages may still come.
        versions: the JSON Schema of each version, of what is read.
    """

    model_config = ConfigDict(extra="forbid")

    kind: Kind
    aliases: list[str] = []
    versions: dict[Annotated[int, Field(ge=1)], Schema]


class LockFile(BaseModel):
    """All contracts of an app, and the results of its jobs by the jobs' names."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = 1
    contracts: dict[str, Locked] = {}
    results: dict[str, Any] = {}

    @classmethod
    def of(cls, contracts: Iterable[Contract]) -> Self:
        """Today's."""
        lock = cls()
        for one in contracts:
            if one.version is None:
                lock.results[one.name] = canonical(one.schema())
                continue
            locked = lock.contracts.setdefault(one.name, Locked(kind=one.kind, versions={}))
            locked.aliases = sorted({*locked.aliases, *one.aliases})
            locked.versions[one.version] = canonical(one.schema())
        return lock

    @classmethod
    def read(cls, path: Path) -> Self:
        """From a file.

        Raises:
            ContractError: there is none, or it is no lock file.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            problem = "there is no lock file: write it by `contracts lock`, and commit it"
        except OSError as error:
            problem = f"cannot be read: {error}"
        except ValidationError as error:
            where = ".".join(map(str, error.errors()[0]["loc"]))
            problem = f"is no lock file of this version: {where}: {error.errors()[0]['msg']}"
        raise ContractError(str(path), [problem])

    def write(self, path: Path) -> None:
        """To a file, the same for the same contracts."""
        path.write_text(str(self), encoding="utf-8")

    def __str__(self) -> str:
        """As it is in the file."""
        document = self.model_dump(mode="json")
        for contract in document["contracts"].values():
            by_number = sorted(contract["versions"].items(), key=lambda item: int(item[0]))
            contract["versions"] = dict(by_number)
        for part in ("contracts", "results"):
            document[part] = dict(sorted(document[part].items()))
        return to_json(document, indent=2).decode() + "\n"


def default_path() -> Path:
    """Beside the nearest pyproject.toml or umbel.toml, else here."""
    return project_directory() / FILE_NAME

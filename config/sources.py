"""Where settings come from: the environment, then files of the project, then code."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    TomlConfigSettingsSource,
)

from umbel.config.errors import SettingsError

ENV_PREFIX = "UMBEL_"
CONFIG = ENV_PREFIX + "CONFIG"
"""Names a file in place of those of the project."""
FILE, PYPROJECT = "umbel.toml", "pyproject.toml"


@dataclass(frozen=True)
class Source:
    """One place, and what it says.

    Attributes:
        name: for people: ``environment``, ``code`` or the path of a file.
        values: by the names of settings.
    """

    name: str
    values: Mapping[str, Any]

    def has(self, path: Sequence[str | int]) -> bool:
        """Whether it says something there.

        Args:
            path: the names of tables and of a key in them, from the top; numbers in lists.
        """
        value: Any = self.values
        for step in path:
            try:
                value = value[step]
            except (KeyError, IndexError, TypeError):
                return False
        return True

    def named(self, path: Sequence[str | int]) -> str:
        """The source, with what the setting is called there."""
        if self.name == "environment":
            return f"environment ({ENV_PREFIX}{str(path[0]).upper()})"
        return f"code ({path[0]}=)" if self.name == "code" else f"file {self.name}"


class _Table(TomlConfigSettingsSource):
    """``[tool.umbel]``; Pydantic's own kind warns wherever there is no pyproject.toml."""

    def _read_file(self, file_path: Any) -> dict[str, Any]:
        table: dict[str, Any] = super()._read_file(file_path).get("tool", {}).get("umbel", {})
        return table


def files() -> list[Path]:
    """The files that are read, those that win first.

    Raises:
        SettingsError: ``UMBEL_CONFIG`` names none.
    """
    if named := os.environ.get(CONFIG):
        path = Path(named).expanduser().absolute()
        if not path.is_file():
            raise SettingsError(f"{CONFIG}={named}: there is no such file")
        return [path]
    directory = project_directory()
    return [path for name in (FILE, PYPROJECT) if (path := directory / name).is_file()]


def file_source(settings: type[BaseSettings], path: Path) -> PydanticBaseSettingsSource:
    """What a file says: all of it, or of a pyproject.toml its table ``[tool.umbel]``.

    Raises:
        SettingsError: it cannot be read; says the file and, where it is not TOML, the line.
    """
    kind = _Table if path.name == PYPROJECT else TomlConfigSettingsSource
    try:
        return kind(settings, path)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{path} is no TOML: {error}") from error
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path} cannot be read: {error}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise SettingsError(f"{path}: [tool.umbel] is no table") from error


def project_directory(start: Path | None = None) -> Path:
    """The nearest directory upwards with a pyproject.toml or an umbel.toml, else `start`."""
    here = (start or Path.cwd()).resolve()
    for directory in (here, *here.parents):
        if (directory / PYPROJECT).is_file() or (directory / FILE).is_file():
            return directory
    return here

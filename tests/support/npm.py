"""Node.js programs under test: their packages, installed once for all tests and runs."""

from __future__ import annotations

import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

import pytest
from filelock import FileLock

BUILD = Path(__file__).parents[2] / "build" / "npm"


def installed(project: Path) -> Path:
    """Return a directory with the packages of a project's lock file, `node_modules` in it.

    Args:
        project: a directory with `package.json` and `package-lock.json`.
    """
    if not shutil.which("npm"):
        pytest.skip("no npm: apt-get install nodejs npm")
    lock = project / "package-lock.json"
    target = BUILD / sha256(lock.read_bytes()).hexdigest()[:16]
    done = target / ".installed"
    target.mkdir(parents=True, exist_ok=True)
    with FileLock(target.with_suffix(".lock")):
        if not done.exists():
            for file in (lock, project / "package.json"):
                shutil.copy(file, target)
            command = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            subprocess.run(command, cwd=target, check=True, capture_output=True, timeout=110)
            done.touch()
    return target

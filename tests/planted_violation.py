"""Shows that the layers' check can fail: a planted import upwards must be found.

Run by `make lint`. It copies the linked tree, plants ``import umbel.consumers`` in the lowest layer
and runs the same command.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
lint_imports = Path(sys.executable).parent / "lint-imports"

with tempfile.TemporaryDirectory() as directory:
    tree = Path(directory) / "tree"
    shutil.copytree(ROOT / "build" / "tree", tree, ignore=shutil.ignore_patterns("__pycache__"))
    with (tree / "umbel" / "config" / "errors.py").open("a") as file:
        file.write("\nimport umbel.consumers.delivery\n")
    done = subprocess.run(
        [lint_imports, "--no-cache", "--config", ROOT / "pyproject.toml"],
        cwd=tree,
        env=os.environ | {"PYTHONPATH": str(tree)},
        capture_output=True,
        text=True,
        check=False,
    )

if done.returncode == 0 or "umbel.config.errors -> umbel.consumers.delivery" not in done.stdout:
    sys.exit(f"the planted import upwards was not found:\n{done.stdout}{done.stderr}")
print("The planted violation was found.")

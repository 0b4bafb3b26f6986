"""The examples of pulling and of events run as they are, each on an embedded server of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("pull", ["150/cat.jpg: succeeded", "150/dog.jpg: succeeded"]),
        (
            "events",
            [
                "booked: paper",
                "prices are read anew: list 2",
                "prices are read anew: list 2",
                "seen: PricesChanged",
                "seen: Sold",
            ],
        ),
    ],
)
def test_an_example_prints_what_it_says(tmp_path, monkeypatch, name, expected):
    """And ends by itself."""
    shutil.copy(EXAMPLES / f"{name}.py", tmp_path)
    for known in [known for known in os.environ if re.match("UMBEL_(?!TEST)|CELERY_", known)]:
        monkeypatch.delenv(known)
    command = [sys.executable, f"{name}.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert [line for line in done.stdout.splitlines() if line in expected] == expected

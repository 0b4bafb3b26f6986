"""Each file of `examples/` runs as its docstring says, on an embedded broker of its own."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"

# What some of them are to say, beside ending well: regular expressions.
SAYS = {
    "events": [r"booked: paper", r"(prices are read anew: list 2\n){2}", r"seen: Sold"],
    "fire_and_forget": [r"queued as \w", r"Ada: hello", r"Alan: hello", r"Grace: hello"],
    "keys": [r"(into 12\nout of 12\n){3}charged once: True"],
    "retries": [r"Ada answered at try 3", r"Alan: TimeoutError: no answer", r", 1 tries", "True"],
    "outbox": [r"^rolled back: tandem costs -1 euros\?\n1 message waits\n", r"\nbike is packed\n"],
    "periodic": [r"report until \d{4}\nswept hall"],
    "pull": [r"150/cat.jpg: succeeded", r"150/dog.jpg: succeeded"],
    "saga": [
        r"is done: bike\n",
        r"is undone: bikes.charge: ValueError: the card has expired\n",
        r"  bikes.charge: undone, runs: 2, ValueError: the card has expired\n",
    ],
    "shards": [rf"{name} 0 1 2 3 4 5 6 7 8 9\n" for name in ("Ada", "Alan", "Grace")],
    "tracked": [r"succeeded 100 %", r"the total is 45", r"the second was cancelled"],
    "with_celery": [r"{'number': 3}\n{'number': 6}\n\[{'number': 1}, .*\n6\n"],
    "work_queue": [r"archive 4", r"what a visitor waits for"],
}

ALL = sorted(path.stem for path in EXAMPLES.glob("*.py"))
# What test_webhooks.py and test_contracts.py in tests/umbel run, and look at further.
ELSEWHERE = {"callback", "versions"}


@pytest.mark.parametrize("example", [one for one in ALL if one not in ELSEWHERE])
def test_an_example_runs(example, tmp_path, monkeypatch):
    """As a stranger would run it; it ends by itself."""
    for name in [name for name in os.environ if re.match("UMBEL_(?!TEST)|CELERY_", name)]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")  # in its order, as in a terminal
    assert f"python examples/{example}.py" in (EXAMPLES / f"{example}.py").read_text()
    shutil.copytree(EXAMPLES, tmp_path, dirs_exist_ok=True)
    command = [sys.executable, f"{example}.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    for says in SAYS.get(example, ["."]):
        assert re.search(says, done.stdout), (done.stdout, done.stderr)


def test_all_are_listed():
    """In their README, each once."""
    listed = re.findall(r"^\| \[(\w+\.py)\]", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(path.name for path in EXAMPLES.glob("*.py"))

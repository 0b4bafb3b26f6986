"""Callbacks around the core: the example, and the command as it is typed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_example_runs(tmp_path, monkeypatch):
    """On an embedded server of its own: a job is told, a URL of success, and of failure."""
    shutil.copy(ROOT / "examples" / "callback.py", tmp_path)
    for name in [name for name in os.environ if re.match("UMBEL_(?!TEST)|CELERY_", name)]:
        monkeypatch.delenv(name)
    command = [sys.executable, "callback.py"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "a URL was told: lamp weighs 1200 g\n" in done.stdout
    assert "a URL was told: parcels.pack has failed: ValueError: too large\n" in done.stdout
    assert "a job was told: book weighs 1200 g" in done.stdout + done.stderr
    command = [sys.executable, "-m", "celery", "-A", "callback", "webhooks", "list"]
    listed = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    tried = r"attempt 1 at http://127.0.0.1:\d+/hook: answered 204"
    assert len(re.findall(tried, listed.stdout)) == 2

"""The README's code runs; its ten lines are run from a wheel in test_package."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path

import umbel
from umbel import Settings
from umbel.jobs.webhooks import headers_of_webhook

ROOT = Path(__file__).parents[2]
README, DOCS = (ROOT / "README.md").read_text(), ROOT / "docs"
PREAMBLE = """
from umbel import *

app = Umbel("readme", broker="redis://localhost")

class AddUp(Message, name="readme.add-up", version=1):
    numbers: list[int]

class Total(Message, name="readme.total", version=1):
    value: int
"""


def test_every_snippet_runs():
    """As it stands, after what the text around it takes for granted."""
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len(snippets) == 3
    for number, snippet in enumerate(snippets):
        names: dict = {"__name__": f"readme_{number}"}
        exec(PREAMBLE, names)
        exec(compile(snippet, f"README snippet {number}", "exec"), names)
        if "add_up" in names:
            assert names["add_up"](names["AddUp"](numbers=[1, 2])).value == 3


def test_the_snippet_of_events_runs(capsys):
    """A handler called inline just runs."""
    [snippet] = re.findall(r"```python\n(.*?)```", (DOCS / "events.md").read_text(), re.DOTALL)
    names: dict = {"__name__": "events"}
    exec(compile(snippet, "events.md", "exec"), names)
    names["book"](names["Sold"](order=1, total=9.5))
    assert capsys.readouterr().out == "order 1: 9.5 in the books\n"


def test_the_snippets_of_callbacks_run(monkeypatch, capsys):
    """The first declares, the others send, to jobs and to URLs, and receive; the types fit."""
    declared, sent, posted, received = re.findall(
        r"```python\n(.*?)```", (DOCS / "callbacks.md").read_text(), re.DOTALL
    )
    monkeypatch.setenv("UMBEL_WEBHOOK_SECRETS", secret := f"whsec_{'c2Vj' * 10}")
    names: dict = {"__name__": __name__}  # generic models look for their module
    exec(compile(declared, "callbacks.md", "exec"), names)
    names["app"].sender.send = lambda job, message, options: options["headers"]
    headers = eval(sent, dict(names))
    assert headers["umbel-on-success"] == {"job": "shop.packed", "queue": "shop"}
    assert headers["umbel-on-failure"] == {"job": "shop.not-packed", "queue": "shop"}
    *before, last = posted.strip().splitlines()
    exec("\n".join(before), names)
    headers = eval(last, dict(names))
    assert headers["umbel-on-failure"] == {"url": "https://shop.example/hooks"}

    exec(compile(received, "callbacks.md", "exec"), names)
    names["SECRETS"] = [secret]
    data = {"job": "shop.pack", "job_id": "j", "correlation_id": "j"}
    result = {"order": 1, "grams": 1200}
    body = json.dumps({"type": "umbel.completed", "data": {**data, "result": result}}).encode()
    signed = headers_of_webhook("w", datetime.now(UTC), body, [secret])
    assert names["hook"](body, signed) == 204
    assert capsys.readouterr().out == "order 1 weighs 1200 g\n"
    assert names["hook"](body, {}) == 400


def test_the_table_of_settings_is_complete():
    """Each setting has its row, and its default is the one that is said."""
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", README, re.MULTILINE))
    assert set(rows) == set(Settings.model_fields)
    for name in ("publish_timeout_s", "result_ttl_s", "max_deliveries"):
        assert float(rows[name]) == Settings.model_fields[name].default


def test_what_it_links_to_is_there():
    """Files of the checkout."""
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (ROOT / link.partition("#")[0]).exists(), link


def test_names_in_it_are_public():
    """What it imports from `umbel` is what `umbel` promises."""
    for names in re.findall(r"^from umbel import (.+)$", README, re.MULTILINE):
        assert set(names.split(", ")) <= set(umbel.__all__)

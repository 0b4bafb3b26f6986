"""The README's code runs; its ten lines are run from a wheel in test_package."""

from __future__ import annotations

import re
from pathlib import Path

import umbel
from umbel import Settings

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


def test_the_snippet_of_callbacks_runs():
    """The first declares, the second sends; the types fit."""
    declared, sent = re.findall(
        r"```python\n(.*?)```", (DOCS / "callbacks.md").read_text(), re.DOTALL
    )
    names: dict = {"__name__": __name__}  # generic models look for their module
    exec(compile(declared, "callbacks.md", "exec"), names)
    names["app"].sender.send = lambda job, message, options: options["headers"]
    namespace = dict(names)
    headers = eval(sent, namespace)
    assert headers["umbel-on-success"] == {"job": "shop.packed", "queue": "shop"}
    assert headers["umbel-on-failure"] == {"job": "shop.not-packed", "queue": "shop"}


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

"""The README's code runs; its ten lines are run from a wheel in test_package."""

from __future__ import annotations

import re
from pathlib import Path

import umbel
from umbel import Settings

README = (Path(__file__).parents[2] / "README.md").read_text()
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


def test_the_table_of_settings_is_complete():
    """Each setting has its row, and its default is the one that is said."""
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", README, re.MULTILINE))
    assert set(rows) == set(Settings.model_fields)
    for name in ("publish_timeout_s", "result_ttl_s", "max_deliveries"):
        assert float(rows[name]) == Settings.model_fields[name].default


def test_what_it_links_to_is_there():
    """Files of the checkout."""
    root = Path(__file__).parents[2]
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (root / link).exists(), link


def test_names_in_it_are_public():
    """What it imports from `umbel` is what `umbel` promises."""
    for names in re.findall(r"^from umbel import (.+)$", README, re.MULTILINE):
        assert set(names.split(", ")) <= set(umbel.__all__)

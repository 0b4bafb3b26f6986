"""The table in docs/conformance.md is of the promises that there are."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from conformance.large import PAGE
from conformance.stages import HERE


def promises() -> Iterator[str]:
    """What is promised by each test of this directory."""
    for file in HERE.glob("test_*.py"):
        for node in ast.parse(file.read_text()).body:
            names = [one.id for one in getattr(node, "decorator_list", ()) if hasattr(one, "id")]
            if isinstance(node, ast.FunctionDef) and names:
                docstring = ast.get_docstring(node) or ""
                yield " ".join(docstring.partition("\n\n")[0].split())


def test_each_promise_has_its_row():
    """Who adds one runs `make conformance`."""
    page = PAGE.read_text()
    assert [one for one in promises() if f"| {one} |" not in page] == []

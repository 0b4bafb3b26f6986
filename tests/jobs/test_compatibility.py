"""What fits whom: by cases, and by Pydantic itself as the judge."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from itertools import product
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, Field, SecretStr, TypeAdapter, ValidationError
from pydantic_core import to_json

from umbel.jobs.compatibility import misfits


class Few(Enum):
    A = "a"
    B = "b"


class Many(Enum):
    A = "a"
    B = "b"
    C = "c"


class Point(BaseModel):
    x: int


class Labelled(BaseModel):
    x: int
    label: str = ""


class Named(BaseModel):
    x: int
    name: str


class Precise(BaseModel):
    x: float


class Tree(BaseModel):
    value: int
    children: list[Tree] = []


class TextTree(BaseModel):
    value: str
    children: list[TextTree] = []


class Card(BaseModel):
    kind: Literal["card"]
    number: str


class LongCard(BaseModel):
    kind: Literal["card"]
    number: Annotated[str, Field(min_length=4)]


class Cash(BaseModel):
    kind: Literal["cash"]


Payment = Annotated[Card | Cash, Field(discriminator="kind")]
LongPayment = Annotated[LongCard | Cash, Field(discriminator="kind")]
Small = Annotated[int, Field(ge=0, lt=10)]
Short = Annotated[str, Field(max_length=2)]
Lower = Annotated[str, Field(pattern="^[a-z]+$")]

TYPES: list[Any] = [
    *(bool, int, float, str, datetime, date, UUID, Decimal, bytes, SecretStr, Any, None),
    *(Small, Short, Lower, Few, Many, Literal["a"], Literal["a", 1], int | None, int | str),
    *(list[int], list[float], set[int], Annotated[list[int], Field(min_length=1)]),
    *(tuple[int, str], tuple[int, int], tuple[int, ...], dict[str, int], dict[str, str]),
    *(Point, Labelled, Named, Precise, Tree, TextTree, Card, Cash, Payment, LongPayment),
    *(list[Point], list[Named], dict[str, Point], Point | None),
]
VALUES: list[Any] = [
    *(None, True, 0, 5, 50, -1, 1.5, "", "a", "b", "c", "A", "abc", "12", "YWJj"),
    *("2026-01-02", "2026-01-02T03:04:05Z", "12345678-1234-5678-1234-567812345678"),
    *([], [1], [1, 1], [1, "a"], [1, 2], [1.5], {}, {"a": 1}, {"a": "b"}, {"x": 1}),
    *({"x": 1, "label": "a"}, {"x": 1, "name": "a"}, {"x": 1.5}, {"x": 1, "name": 5}),
    *({"value": 1, "children": [{"value": 2}]}, {"value": "a", "children": [{"value": "b"}]}),
    *({"kind": "card", "number": "1"}, {"kind": "card", "number": "12345"}, {"kind": "cash"}),
    *([{"x": 1}], [{"x": 1, "name": "a"}], {"a": {"x": 1}}, {"x": None}),
]


def said(writer: Any, reader: Any) -> list[tuple[str, str]]:
    schemas = [TypeAdapter(one).json_schema() for one in (writer, reader)]
    return [(misfit.path, misfit.why) for misfit in misfits(*schemas)]


def takes(kind: Any, value: Any, *, strict: bool) -> bool:
    try:
        TypeAdapter(kind).validate_json(
            to_json(value), strict=strict, extra="forbid" if strict else "ignore"
        )
    except ValidationError:
        return False
    return True


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_what_did_not_change_fits(kind):
    """Also what refers to itself, and unions."""
    assert said(kind, kind) == []


def test_what_is_said_to_fit_is_read():
    """Of every two types: what the one takes by the letter, the other takes."""
    fitting = [(one, other) for one, other in product(TYPES, TYPES) if not said(one, other)]
    assert len(TYPES) < len(fitting) < len(TYPES) ** 2 / 2
    for writer, reader in fitting:
        if reader is Decimal:
            continue  # its own schema lets any text through
        for value in VALUES:
            if takes(writer, value, strict=True) and not isinstance(value, bool):
                assert takes(reader, value, strict=False), (writer, reader, value)


@pytest.mark.parametrize(
    ("writer", "reader"),
    [
        *((int, float), (int, int | None), (int, int | str), (Few, Many), (Few, str)),
        *((Literal["a"], Few), (Literal["ab"], Lower), (Small, int), (Short, str), (datetime, str)),
        *((set[int], list[int]), (str, SecretStr), (tuple[int, int], list[int]), (int, Any)),
        *((Point, Labelled), (Labelled, Point), (Named, Point), (Card, Payment)),
        *((dict[str, Point], dict[str, Labelled]), (Cash, Payment), (LongPayment, Payment)),
    ],
    ids=str,
)
def test_what_reads_more_fits(writer, reader):
    """Wider types, further alternatives, fields with a default, fields that nobody reads."""
    assert said(writer, reader) == []


@pytest.mark.parametrize(
    ("writer", "reader", "misfit"),
    [
        (int, str, ("", "written as integer, read as string")),
        (str, datetime, ("", 'written with any format, read with format "date-time"')),
        (Many, Few, ("", 'written as "c", read as "a" or "b"')),
        (int | None, int, ("", "written as null, read as integer")),
        (int, Small, ("", "written without a limit, read from 0")),
        (str, Short, ("", "written with any number of characters, read up to 2")),
        (str, Lower, ("", 'written with any pattern, read with pattern "^[a-z]+$"')),
        (Point, Named, ("name", "is not written, and the reader requires it")),
        (list[Point], list[Named], ("[].name", "is not written, and the reader requires it")),
        (dict[str, int], dict[str, str], ("*", "written as integer, read as string")),
        (dict[str, int], Point, ("x", "may be absent, and the reader requires it")),
        (tuple[int, str], tuple[int, int], ("[1]", "written as string, read as integer")),
        (Payment, LongPayment, ("number", "written with 0 characters or more, read from 4")),
        (bool, int | str, ("", "written as boolean, read as integer or string")),
        (Any, int, ("", "written as anything, read as integer")),
    ],
    ids=str,
)
def test_a_misfit_says_where_and_what(writer, reader, misfit):
    """The path of the field, what is written, what is read."""
    assert misfit in said(writer, reader)


def test_a_misfit_in_a_tree_is_told_with_its_way():
    """What refers to itself ends."""
    why = "written as integer, read as string"
    assert sorted(said(Tree, TextTree)) == [("children[].value", why), ("value", why)]

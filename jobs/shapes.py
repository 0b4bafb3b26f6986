"""What the JSON of a contract looks like, from its JSON Schema: what XML needs to be read back.

JSON says of each value what it is; in XML `1` may be a number or a text, and one element a list of
one. The contract's shape decides, so that documents stay as plain as a person would write them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeAlias

from umbel.jobs.contracts import Message


@dataclass(frozen=True)
class Plain:
    """A text, number or truth value.

    Attributes:
        kind: JSON Schema's name of its type: ``string``, ``integer``, ``number``, ``boolean``.
        values: all that it may be; None for any.
    """

    kind: str
    values: tuple[Any, ...] | None = None


@dataclass(frozen=True)
class Null:
    """Nothing else but null."""


@dataclass(frozen=True)
class Nullable:
    """Null, or something."""

    inner: Shape


@dataclass(frozen=True)
class Items:
    """A list of any length."""

    item: Shape


@dataclass(frozen=True)
class Places:
    """A list with a place for each of these."""

    items: tuple[Shape, ...]


@dataclass(frozen=True)
class Fields:
    """An object with fields of these names."""

    fields: Mapping[str, Shape]
    required: frozenset[str]


@dataclass(frozen=True)
class Entries:
    """An object with any names."""

    value: Shape


@dataclass(frozen=True)
class Choice:
    """One of several; each has a name."""

    branches: Mapping[str, Shape]


@dataclass(frozen=True)
class Named:
    """What is described elsewhere, and may be a part of itself."""

    name: str


Shape: TypeAlias = Plain | Null | Nullable | Items | Places | Fields | Entries | Choice | Named

ANY = Named(" any")
"""Whatever JSON can say. No schema has a name with a space in front."""

_ANYTHING = Choice(
    {
        "null": Null(),
        "boolean": Plain("boolean"),
        "integer": Plain("integer"),
        "number": Plain("number"),
        "string": Plain("string"),
        "array": Items(ANY),
        "object": Entries(ANY),
    }
)
_KINDS = {"string": str, "integer": int, "number": int | float, "boolean": bool}
_DEFINED = "#/$defs/"


@dataclass(frozen=True)
class Shapes:
    """The shape of a contract.

    Attributes:
        root: of the whole message.
        named: what `Named` stands for.
    """

    root: Shape
    named: Mapping[str, Shape]

    def bare(self, shape: Shape) -> Shape:
        """What a name stands for."""
        while isinstance(shape, Named):
            shape = self.named[shape.name]
        return shape

    def fits(self, value: Any, shape: Shape) -> bool:  # noqa: PLR0911  one for each kind
        """Whether a value can be written in this shape and read back."""
        match self.bare(shape):
            case Plain(kind, values):
                right = isinstance(value, _KINDS[kind])
                right = right and (kind == "boolean" or not isinstance(value, bool))
                return right and (values is None or value in values)
            case Null():
                return value is None
            case Nullable(inner):
                return value is None or self.fits(value, inner)
            case Items(item):
                return isinstance(value, list) and all(self.fits(one, item) for one in value)
            case Places(items):
                same = isinstance(value, list) and len(value) == len(items)
                return same and all(map(self.fits, value, items))
            case Fields(fields, required):
                known = isinstance(value, dict) and required <= value.keys() <= fields.keys()
                return known and all(self.fits(one, fields[name]) for name, one in value.items())
            case Entries(inner):
                return isinstance(value, dict) and all(
                    self.fits(one, inner) for one in value.values()
                )
            case Choice(branches):
                return any(self.fits(value, branch) for branch in branches.values())
            case other:
                raise AssertionError(other)

    def branch(self, value: Any, choice: Choice) -> str | None:
        """The name of the first branch that a value fits; None if it fits none."""
        fitting = (name for name, one in choice.branches.items() if self.fits(value, one))
        return next(fitting, None)


@cache
def shapes_of(contract: type[Message]) -> Shapes:
    """The shape of what `payload` gives."""
    schema = contract.model_json_schema(mode="serialization")
    named = {name: _shape(one) for name, one in schema.get("$defs", {}).items()}
    return Shapes(_shape(schema), {**named, ANY.name: _ANYTHING})


def _shape(schema: Any) -> Shape:  # noqa: PLR0911  one return for each kind
    if not isinstance(schema, dict):  # true, where JSON Schema allows it for {}
        return ANY
    if "$ref" in schema:
        return Named(schema["$ref"].removeprefix(_DEFINED))
    if values := schema.get("enum") or ([schema["const"]] if "const" in schema else None):
        return _one_of_values(values)
    if several := schema.get("anyOf") or schema.get("oneOf"):
        return _one_of(several)
    if len(parts := schema.get("allOf", ())) == 1:
        return _shape(parts[0])
    match schema.get("type"):
        case "null":
            return Null()
        case "array" if "prefixItems" in schema:
            return Places(tuple(map(_shape, schema["prefixItems"])))
        case "array":
            return Items(_shape(schema.get("items", True)))
        case "object":
            return _object(schema)
        case str(kind) if kind in _KINDS:
            return Plain(kind)
    return ANY


def _object(schema: dict[str, Any]) -> Shape:
    others = schema.get("additionalProperties", "properties" not in schema)
    if not others:
        fields = {name: _shape(one) for name, one in schema.get("properties", {}).items()}
        return Fields(fields, frozenset(schema.get("required", ())))
    return Entries(ANY if "properties" in schema else _shape(others))


def _one_of_values(values: list[Any]) -> Shape:
    kinds = {_kind_of(value) for value in values if value is not None}
    if len(kinds) != 1 or not kinds <= _KINDS.keys():
        return ANY
    plain = Plain(kinds.pop(), tuple(value for value in values if value is not None))
    return Nullable(plain) if None in values else plain


def _kind_of(value: Any) -> str:
    kinds = (kind for kind in ("boolean", "integer", "number", "string") if _is(value, kind))
    return next(kinds, "other")


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, _KINDS[kind])


def _one_of(schemas: list[dict[str, Any]]) -> Shape:
    inner = [one for one in schemas if one.get("type") != "null"]
    if not inner:
        return Null()
    shape = _shape(inner[0]) if len(inner) == 1 else Choice(dict(_branches(inner)))
    return shape if len(inner) == len(schemas) else Nullable(shape)


def _branches(schemas: list[dict[str, Any]]) -> Iterator[tuple[str, Shape]]:
    """Named for people; the second of a name has a number."""
    seen: dict[str, int] = {}
    for schema in schemas:
        shape = _shape(schema)
        name = shape.name.strip() if isinstance(shape, Named) else _word(shape)
        seen[name] = count = seen.get(name, 0) + 1
        yield (name if count == 1 else f"{name}-{count}"), shape


def _word(shape: Shape) -> str:
    match shape:
        case Plain(kind):
            return kind
        case Items() | Places():
            return "array"
        case Fields() | Entries():
            return "object"
    return "choice"

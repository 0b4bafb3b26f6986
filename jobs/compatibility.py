"""Whether all that one JSON Schema lets through fits another, and where not.

Of the schemas that Pydantic makes; where it cannot be told it counts as a misfit. What a message
has beyond its reader's fields is no misfit: consumers let unknown fields through.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from pydantic_core import to_json

Schema = dict[str, Any]

ANNOTATIONS = frozenset(
    # Pydantic drops repetitions of a set's items; secrets are text; the rest is for people.
    [
        "title",
        "description",
        "default",
        "examples",
        "deprecated",
        "readOnly",
        "writeOnly",
        "discriminator",
        "uniqueItems",
        "$defs",
        "$schema",
        "$id",
        "$comment",
    ]
)
_HANDLED = frozenset(
    [
        "type",
        "const",
        "enum",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "prefixItems",
        "minimum",
        "maximum",
        "exclusiveMinimum",
        "exclusiveMaximum",
        "multipleOf",
    ]
)
_AT_LEAST = {"minLength": "characters", "minItems": "items", "minProperties": "entries"}
_AT_MOST = {"maxLength": "characters", "maxItems": "items", "maxProperties": "entries"}


@dataclass(frozen=True)
class Misfit:
    """What is written and cannot be read.

    Attributes:
        path: of the field, ``files[].size_bytes``; empty for the message itself.
        why: what is written and what is read.
        absent: whether the reader needs what may not be there.
    """

    path: str
    why: str
    absent: bool = False


def misfits(writer: Schema, reader: Schema) -> list[Misfit]:
    """What the reader does not take of what the writer may write; nothing if it takes all.

    Args:
        writer: the JSON Schema of what is written.
        reader: likewise of what is read.
    """
    comparison = _Comparison(writer.get("$defs", {}), reader.get("$defs", {}))
    return list(comparison.compare(writer, reader, "", frozenset()))


@dataclass(frozen=True)
class _Comparison:
    written: Mapping[str, Schema]
    read: Mapping[str, Schema]

    def compare(
        self, writer: Any, reader: Any, path: str, seen: frozenset[tuple[str, str]]
    ) -> Iterator[Misfit]:
        """Both may refer to themselves: a pair that is being compared already fits so far."""
        pair = repr(writer), repr(reader)
        if pair in seen or (writer == reader and self.written == self.read):
            return
        compare = partial(self.compare, seen=seen | {pair})
        writer, reader = _resolved(writer, self.written), _resolved(reader, self.read)
        written, read = _alternatives(writer, values=True), _alternatives(reader)
        if len(written) > 1:
            for one in written:
                yield from compare(one, reader, path)
        elif len(read) > 1:
            found = [list(compare(written[0], one, path)) for one in read]
            yield from _nearest(found, written[0], read, path) if all(found) else ()
        elif written[0] != writer or read[0] != reader:
            yield from compare(written[0], read[0], path)
        else:
            yield from _plain(writer, reader, path)
            yield from self._parts(writer, reader, path, compare)

    def _parts(self, writer: Schema, reader: Schema, path: str, compare: Any) -> Iterator[Misfit]:
        if writer.get("type") == reader.get("type") == "object":
            yield from _fields(writer, reader, path, compare)
        if writer.get("type") == reader.get("type") == "array":
            yield from _items(writer, reader, path, compare)


def _resolved(schema: Any, definitions: Mapping[str, Schema]) -> Schema:
    """Without a reference at its top, and without what is for people."""
    if isinstance(schema, bool):
        return {} if schema else {"not": {}}
    while "$ref" in schema:
        rest = {name: value for name, value in schema.items() if name != "$ref"}
        schema = {**definitions[schema["$ref"].removeprefix("#/$defs/")], **rest}
    plain = {name: value for name, value in schema.items() if name not in ANNOTATIONS}
    if plain.get("format") == "password":
        del plain["format"]
    return plain


def _alternatives(schema: Schema, *, values: bool = False) -> list[Schema]:
    """Those of which one has to hold; with `values` also each value of an enumeration."""
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            rest = {name: value for name, value in schema.items() if name != keyword}
            return [{**rest, **one} for one in schema[keyword]]
    if isinstance(schema.get("type"), list):
        return [{**schema, "type": one} for one in schema["type"]]
    if values and "enum" in schema:
        return [{"const": value} for value in schema["enum"]]
    return [schema]


def _nearest(
    found: list[list[Misfit]], writer: Schema, readers: list[Schema], path: str
) -> list[Misfit]:
    """What keeps it out of the alternative that comes nearest; that of none if none does."""
    inside = [one for one in found if all(misfit.path != path for misfit in one)]
    if inside:
        return min(inside, key=len)
    taken = " or ".join(dict.fromkeys(_said(reader) for reader in readers))
    return [Misfit(path, f"written as {_said(writer)}, read as {taken}")]


def _plain(writer: Schema, reader: Schema, path: str) -> Iterator[Misfit]:
    """Of one value, what can be said without looking into it."""
    if "const" in reader or "enum" in reader:
        yield from _one_of(writer, reader, path)
        return
    if "const" in writer:
        writer = _around(writer["const"])
    written, read = writer.get("type"), reader.get("type")
    if read and written != read and (written, read) != ("integer", "number"):
        yield Misfit(path, f"written as {_said(writer)}, read as {_said(reader)}")
        return
    yield from _bounds(writer, reader, path)
    for keyword, value in reader.items():
        if keyword in _HANDLED or keyword in _AT_LEAST or keyword in _AT_MOST:
            continue
        if writer.get(keyword) != value and not _matches(writer, keyword, value):
            was = f"{keyword} {_json(writer[keyword])}" if keyword in writer else f"any {keyword}"
            yield Misfit(path, f"written with {was}, read with {keyword} {_json(value)}")


def _one_of(writer: Schema, reader: Schema, path: str) -> Iterator[Misfit]:
    taken = [_json(value) for value in reader.get("enum", [reader.get("const")])]
    if "const" not in writer or _json(writer["const"]) not in taken:
        yield Misfit(path, f"written as {_said(writer)}, read as {_some(taken)}")


def _around(value: Any) -> Schema:
    """A schema that lets as little through besides this value as one without ``const`` can."""
    if isinstance(value, bool) or value is None:
        return {"type": "null" if value is None else "boolean"}
    if isinstance(value, str):
        return {"type": "string", "minLength": len(value), "maxLength": len(value), "is": value}
    if isinstance(value, int | float):
        kind = "integer" if isinstance(value, int) else "number"
        return {"type": kind, "minimum": value, "maximum": value}
    return {"type": "array" if isinstance(value, list) else "object"}


def _matches(writer: Schema, keyword: str, value: Any) -> bool:
    return keyword == "pattern" and "is" in writer and bool(re.search(value, writer["is"]))


def _bounds(writer: Schema, reader: Schema, path: str) -> Iterator[Misfit]:
    for sign, inclusive, exclusive, word in (
        (1, "minimum", "exclusiveMinimum", "from"),
        (-1, "maximum", "exclusiveMaximum", "up to"),
    ):
        read, written = (_bound(one, sign, inclusive, exclusive) for one in (reader, writer))
        if read and (written is None or written < read):
            was = f"{word} {sign * written[0]:g}" if written else "without a limit"
            yield Misfit(path, f"written {was}, read {word} {sign * read[0]:g}")
    if (step := reader.get("multipleOf")) and writer.get("multipleOf", 0.5 * step) % step:
        yield Misfit(path, f"read in multiples of {step:g} only")
    for keyword, what in _AT_LEAST.items():
        if (least := writer.get(keyword, 0)) < reader.get(keyword, 0):
            yield Misfit(path, f"written with {least} {what} or more, read from {reader[keyword]}")
    for keyword, what in _AT_MOST.items():
        most, limit = writer.get(keyword), reader.get(keyword)
        if limit is not None and (most is None or most > limit):
            was = "any number of" if most is None else f"up to {most}"
            yield Misfit(path, f"written with {was} {what}, read up to {limit}")


def _bound(schema: Schema, sign: int, inclusive: str, exclusive: str) -> tuple[float, bool] | None:
    """As numbers to be compared by size: whole ones beyond an exclusive bound begin at the next."""
    found = [(sign * schema[inclusive], False)] if inclusive in schema else []
    if exclusive in schema:
        bound = sign * schema[exclusive]
        whole = schema.get("type") == "integer" and bound == int(bound)
        found.append((bound + 1, False) if whole else (bound, True))
    return max(found, default=None)


def _fields(writer: Schema, reader: Schema, path: str, compare: Any) -> Iterator[Misfit]:
    """A model has ``properties``, a mapping has none: there ``additionalProperties`` says what."""
    written, read = writer.get("properties", {}), reader.get("properties", {})
    rest_written = writer.get("additionalProperties", "properties" not in writer)
    rest_read = reader.get("additionalProperties", True)
    always, needed = set(writer.get("required", ())), set(reader.get("required", ()))
    for name, schema in read.items():
        inner = f"{path}.{name}".lstrip(".")
        if name in written:
            yield from compare(written[name], schema, inner)
        elif rest_written:
            yield from compare(rest_written, schema, inner)
        if name in needed - always:
            may = "may be absent" if name in written or rest_written else "is not written"
            yield Misfit(inner, f"{may}, and the reader requires it", absent=True)
    if rest_read in (True, False):
        return
    for name in written.keys() - read.keys():
        yield from compare(written[name], rest_read, f"{path}.{name}".lstrip("."))
    if rest_written:
        yield from compare(rest_written, rest_read, f"{path}.*".lstrip("."))


def _items(writer: Schema, reader: Schema, path: str, compare: Any) -> Iterator[Misfit]:
    written, read = writer.get("prefixItems", []), reader.get("prefixItems", [])
    most = writer.get("maxItems", float("inf"))
    places = max(len(written), len(read))
    for place in range(places):
        if place < most:
            one = written[place] if place < len(written) else writer.get("items", {})
            other = read[place] if place < len(read) else reader.get("items", {})
            yield from compare(one, other, f"{path}[{place}]")
    if most > places:
        yield from compare(writer.get("items", {}), reader.get("items", {}), f"{path}[]")


def _said(schema: Schema) -> str:
    if "const" in schema:
        return _json(schema["const"])
    if "enum" in schema:
        return _some([_json(value) for value in schema["enum"]])
    kind = schema.get("type") or schema.get("$ref", "anything").rpartition("/")[2]
    return f"{kind} ({schema['format']})" if "format" in schema else str(kind)


def _some(values: list[str]) -> str:
    return " or ".join(values) if len(values) < 6 else f"one of {len(values)} values"


def _json(value: Any) -> str:
    return to_json(value).decode()

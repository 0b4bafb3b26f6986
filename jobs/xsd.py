"""The XML Schema of a contract's documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from xml.sax.saxutils import quoteattr

from umbel.jobs.contracts import Message
from umbel.jobs.shapes import (
    ANY,
    Choice,
    Entries,
    Fields,
    Items,
    Named,
    Null,
    Nullable,
    Places,
    Plain,
    Shape,
    Shapes,
    shapes_of,
)
from umbel.jobs.xml import namespace_of, xml_name

_TYPES = {
    "string": "xs:string",
    "integer": "xs:integer",
    "number": "xs:double",
    "boolean": "xs:boolean",
}
_INDENT = "  "


def xsd_of(contract: type[Message]) -> str:
    """The XML Schema (1.0) of what `to_xml` writes: always the same text for the same contract.

    It says names, nesting and types. Narrower rules (a pattern, a range) are the contract's to
    check, and unknown elements, which a consumer lets through, are not in it.

    Raises:
        ContractError: the class has no contract.
    """
    shapes, namespace = shapes_of(contract), namespace_of(contract)
    lines = [
        '<?xml version="1.0" encoding="UTF-8"?>',
        '<xs:schema xmlns:xs="http://www.w3.org/2001/XMLSchema"',
        f'    xmlns="{namespace}" targetNamespace="{namespace}" elementFormDefault="qualified">',
        *_indented(_element(contract.contract_name, shapes.root, shapes)),
    ]
    for name in _used(shapes):
        if not isinstance(shape := shapes.named[name], Named | Nullable):
            lines += _indented(_type(shape, shapes, f" name={_type_name(name)}"))
    return "\n".join([*lines, "</xs:schema>", ""])


def _used(shapes: Shapes) -> list[str]:
    """The names that are reached from the root."""
    seen: list[str] = []
    waiting: list[Shape] = [shapes.root]
    while waiting:
        match waiting.pop():
            case Named(name) if name not in seen:
                seen.append(name)
                waiting.append(shapes.named[name])
            case Nullable(inner) | Items(inner) | Entries(inner):
                waiting.append(inner)
            case Places(several):
                waiting.extend(several)
            case Fields(several) | Choice(several):
                waiting.extend(several.values())
    return sorted(seen)


def _type_name(name: str) -> str:
    return quoteattr("_any" if name == ANY.name else f"t.{xml_name(name)}")


def _element(name: str, shape: Shape, shapes: Shapes, occurs: str = "") -> Iterator[str]:
    start = f"<xs:element name={quoteattr(name)}{occurs}"
    if isinstance(shapes.bare(shape), Nullable):
        start += ' nillable="true"'
    shape = _to_be_typed(shape, shapes)
    if isinstance(shape, Named):
        yield f"{start} type={_type_name(shape.name)}/>"
    elif isinstance(shape, Plain) and shape.values is None:
        yield f'{start} type="{_TYPES[shape.kind]}"/>'
    else:
        yield f"{start}>"
        yield from _indented(_type(shape, shapes))
        yield "</xs:element>"


def _to_be_typed(shape: Shape, shapes: Shapes) -> Shape:
    """The last name on the way to what is described; that it may be null is said elsewhere."""
    if isinstance(shape, Nullable):
        return _to_be_typed(shape.inner, shapes)
    if isinstance(shape, Named) and isinstance(shapes.named[shape.name], Named | Nullable):
        return _to_be_typed(shapes.named[shape.name], shapes)
    return shape


def _type(shape: Shape, shapes: Shapes, name: str = "") -> Iterator[str]:
    """A type of its own."""
    match shape:
        case Plain(kind, values):
            yield f"<xs:simpleType{name}>"
            yield f'  <xs:restriction base="{_TYPES[kind]}">'
            for value in values or ():
                text = value if isinstance(value, str) else str(value).lower()
                if kind != "boolean":  # XML Schema has no enumeration of these
                    yield f"    <xs:enumeration value={quoteattr(text)}/>"
            yield "  </xs:restriction>"
            yield "</xs:simpleType>"
        case _:
            yield f"<xs:complexType{name}>"
            yield from _indented(_model(shape, shapes))
            yield "</xs:complexType>"


def _model(shape: Shape, shapes: Shapes) -> Iterator[str]:
    """What is in an element that has elements."""
    many = ' minOccurs="0" maxOccurs="unbounded"'
    match shape:
        case Fields(fields, required):
            yield from _group("all", _fields(fields, required, shapes))
        case Items(item):
            yield from _group("sequence", _element("item", item, shapes, many))
        case Places(items):
            places = (
                line
                for number, item in enumerate(items, 1)
                for line in _element(f"item{number}", item, shapes)
            )
            yield from _group("sequence", places)
        case Entries(inner):
            yield "<xs:sequence>"
            yield f'  <xs:element name="entry"{many}>'
            yield "    <xs:complexType>"
            pair = [*_element("key", Plain("string"), shapes), *_element("value", inner, shapes)]
            yield from _indented(_group("sequence", iter(pair)), 3)
            yield "    </xs:complexType>"
            yield "  </xs:element>"
            yield "</xs:sequence>"
        case Choice(branches):
            either = (
                line
                for name, one in branches.items()
                for line in _element(xml_name(name), one, shapes)
            )
            yield from _group("choice", either)
        case Null():
            yield "<xs:sequence/>"


def _fields(fields: Mapping[str, Shape], required: frozenset[str], shapes: Shapes) -> Iterator[str]:
    for name, shape in fields.items():
        yield from _element(
            xml_name(name), shape, shapes, "" if name in required else ' minOccurs="0"'
        )


def _group(kind: str, lines: Iterator[str]) -> Iterator[str]:
    yield f"<xs:{kind}>"
    yield from _indented(lines)
    yield f"</xs:{kind}>"


def _indented(lines: Iterator[str], by: int = 1) -> Iterator[str]:
    return (_INDENT * by + line for line in lines)

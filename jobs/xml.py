"""Messages as XML documents, both ways and without a loss, by the shape of their contract.

    <shop.add xmlns="urn:umbel:shop.add:1"><a>1</a><tags><item>red</item></tags></shop.add>

What is the element of a field, an item, an entry or a choice is in `docs/wire-format.md`;
`umbel.jobs.xsd` says it to other programs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, TypeVar
from xml.etree.ElementTree import Element, ParseError, TreeBuilder
from xml.sax.saxutils import escape

from defusedxml.common import DefusedXmlException
from defusedxml.ElementTree import DefusedXMLParser
from pydantic_core import from_json, to_json

from umbel.config.errors import ContractError
from umbel.jobs import versions
from umbel.jobs.contracts import Message, contract_of, names_of
from umbel.jobs.shapes import (
    Choice,
    Entries,
    Fields,
    Items,
    Null,
    Nullable,
    Places,
    Plain,
    Shape,
    Shapes,
    shapes_of,
)

M = TypeVar("M", bound=Message)

MAX_BYTES = 16 * 1024 * 1024
"""Largest document that is read."""
MAX_DEPTH = 100
"""Most elements around an element of a document that is read."""

XSI = "http://www.w3.org/2001/XMLSchema-instance"
_NIL = f"{{{XSI}}}nil"
_NAMESPACE = re.compile(r"urn:umbel:([^:]+):([1-9]\d{0,8})")
_NOT_IN_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Of names only what every program takes for one: ASCII.
_NOT_IN_NAME = re.compile(r"^[^A-Za-z_]|[^\w.-]|_(?=x[0-9A-F]*_)", re.ASCII)


class NotXml(ValueError):
    """What cannot be read as an XML document, or is not to be; says why."""


def to_xml(message: Message) -> bytes:
    """The message as an XML document in UTF-8, after its contract was checked.

    Raises:
        ContractError: it does not fit, or holds a character that XML 1.0 has no form for.
    """
    contract = type(message)
    payload = contract.checked(message).payload()
    shapes, name = shapes_of(contract), contract.contract_name
    try:
        content = "".join(_content(payload, shapes.root, shapes, ()))
    except _NoForm as problem:
        raise ContractError(name, [str(problem)]) from None
    start = f'<{name} xmlns="{namespace_of(contract)}" xmlns:xsi="{XSI}">'
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{start}{content}</{name}>\n'.encode()


def from_xml(contract: type[M], document: bytes | str) -> M:
    """The message that a document says, after the consumer's check; old versions are carried on.

    Args:
        contract: its root's name, or one of its aliases; the version is in the namespace, without
            one it is this contract's.

    Raises:
        ContractError: it is no XML, or one that is not to be read (a DTD, too deep, too large), or
            it does not fit the contract.
    """
    try:
        root = parse(document)
        name, version = named_by(root)
        payload = payload_of(root, contract)
    except NotXml as error:
        raise ContractError(contract.contract_name, [str(error)]) from error
    return versions.received(contract, payload, name, version)  # type: ignore[return-value]


def namespace_of(contract: type[Message]) -> str:
    """The XML namespace of a contract's documents."""
    name, version = contract_of(contract)
    return f"urn:umbel:{name}:{version}"


def contract_in(namespace: str) -> tuple[str, int] | None:
    """The name and version that a namespace says; None for other namespaces."""
    known = _NAMESPACE.fullmatch(namespace)
    return (known[1], int(known[2])) if known else None


def parse(document: bytes | str) -> Element:
    """The root of a document, which may be anybody's.

    Raises:
        NotXml: with what is wrong.
    """
    if len(document) > MAX_BYTES:
        raise NotXml(f"a document of {len(document)} bytes; at most {MAX_BYTES} are read")
    parser = DefusedXMLParser(target=_Bounded(), forbid_dtd=True)
    try:
        parser.feed(document)
        root: Element = parser.close()
    except DefusedXmlException as error:
        raise NotXml(f"a document with a DTD is not read: {error}") from error
    except (ParseError, ValueError, LookupError) as error:
        raise NotXml(str(error)) from error
    return root


def named_by(root: Element) -> tuple[str, int | None]:
    """The contract's name and version, as far as a document says them.

    Raises:
        NotXml: its namespace is another program's.
    """
    namespace, name = _split(root.tag)
    if not namespace:
        return name, None
    if known := contract_in(namespace):
        return known
    raise NotXml(f"expected no namespace or urn:umbel:<contract>:<version>, got {namespace!r}")


def payload_of(root: Element, contract: type[Message]) -> Any:
    """What a document says, as JSON types; still to be checked by the contract.

    Raises:
        NotXml: it is another contract's, or not of its form.
    """
    name, version = named_by(root)
    if {name, _split(root.tag)[1]} - {*names_of(contract)}:
        raise NotXml(f"expected <{contract.contract_name}>, got <{_split(root.tag)[1]}>")
    reader = versions.class_for(contract, name, version)
    shapes = shapes_of(reader)
    return _value(root, shapes.root, shapes, (root.tag,))


class _Bounded(TreeBuilder):
    """Keeps count of the depth while a document is read."""

    _depth = 0

    def start(self, tag: Any, attrs: Any, /) -> Element:
        """An element begins."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise NotXml(f"a document deeper than {MAX_DEPTH} elements is not read")
        return super().start(tag, attrs)

    def end(self, tag: Any, /) -> Element:
        """It ends."""
        self._depth -= 1
        return super().end(tag)


class _NoForm(Exception):
    """A value that XML cannot say."""

    def __init__(self, path: tuple[str, ...], why: str) -> None:
        super().__init__(f"{'.'.join(path) or '(message)'}: {why}")


Path = tuple[str, ...]


def _content(value: Any, shape: Shape, shapes: Shapes, path: Path) -> Iterator[str]:
    """What is between an element's tags."""
    match shapes.bare(shape):
        case Nullable(inner):
            yield from _content(value, inner, shapes, path)
        case Fields(fields) if isinstance(value, dict) and value.keys() <= fields.keys():
            for name, one in value.items():
                yield from _element(xml_name(name), one, fields[name], shapes, (*path, name))
        case Entries(inner) if isinstance(value, dict):
            for name, one in value.items():
                yield f"<entry><key>{_text(name, path)}</key>"
                yield from _element("value", one, inner, shapes, (*path, name))
                yield "</entry>"
        case Items(item) if isinstance(value, list):
            for number, one in enumerate(value):
                yield from _element("item", one, item, shapes, (*path, str(number)))
        case Places(items) if isinstance(value, list) and len(value) == len(items):
            for number, (one, item) in enumerate(zip(value, items, strict=True), 1):
                yield from _element(f"item{number}", one, item, shapes, (*path, str(number - 1)))
        case Choice() as choice if name := shapes.branch(value, choice):
            yield from _element(xml_name(name), value, choice.branches[name], shapes, path)
        case (Plain() | Null()) as plain if shapes.fits(value, plain):
            yield _text(value if isinstance(value, str) else _json(value), path)
        case other:
            raise _NoForm(path, f"a {type(value).__name__} where the schema says {other}")


def _element(name: str, value: Any, shape: Shape, shapes: Shapes, path: Path) -> Iterator[str]:
    if value is None and isinstance(shapes.bare(shape), Nullable):
        yield f'<{name} xsi:nil="true"/>'
        return
    yield f"<{name}>"
    yield from _content(value, shape, shapes, path)
    yield f"</{name}>"


def _json(value: Any) -> str:
    return "" if value is None else to_json(value).decode()


def _text(text: str, path: Path) -> str:
    if wrong := _NOT_IN_XML.search(text):
        raise _NoForm(path, f"the character {wrong[0]!r} has no form in XML 1.0")
    return escape(text, {"\r": "&#13;"})  # a bare one would be read as a line feed


def _value(  # noqa: PLR0911  one for each kind
    element: Element, shape: Shape, shapes: Shapes, path: Path
) -> Any:
    """The JSON of an element."""
    match shapes.bare(shape):
        case Nullable(inner):
            nil = element.get(_NIL) in {"true", "1"}
            return None if nil else _value(element, inner, shapes, path)
        case Fields(fields):
            return _fields(element, fields, shapes, path)
        case Entries(inner):
            pairs = [_children(one, path) for one in _items(element, "entry", path)]
            return {
                _only(key, "key", path).text or "": _value(
                    _only(value, "value", path), inner, shapes, path
                )
                for key, value in (_pair(pair, path) for pair in pairs)
            }
        case Items(item):
            return [_value(one, item, shapes, path) for one in _items(element, "item", path)]
        case Places(items):
            given = _children(element, path)
            if [_split(one.tag)[1] for one in given] != [
                f"item{number}" for number in range(1, len(items) + 1)
            ]:
                raise _misfit(path, f"expected item1 to item{len(items)}")
            return [_value(one, item, shapes, path) for one, item in zip(given, items, strict=True)]
        case Choice(branches):
            return _chosen(element, branches, shapes, path)
        case Plain(kind):
            return _plain(_leaf(element, path), kind)
    if _leaf(element, path).strip():
        raise _misfit(path, "expected an empty element")
    return None


def _fields(element: Element, fields: Any, shapes: Shapes, path: Path) -> dict[str, Any]:
    names = {xml_name(name): name for name in fields}
    found: dict[str, Any] = {}
    for child in _children(element, path):
        tag = _split(child.tag)[1]
        name = names.get(tag, tag)
        if name in found:
            raise _misfit(path, f"<{tag}> is there twice")
        # What only newer producers know is the contract's to let through or to refuse.
        known = name in fields
        inside = (*path, tag)
        found[name] = _value(child, fields[name], shapes, inside) if known else child.text
    return found


def _chosen(element: Element, branches: Any, shapes: Shapes, path: Path) -> Any:
    names = {xml_name(name): name for name in branches}
    children = _children(element, path)
    tags = [_split(child.tag)[1] for child in children]
    if len(tags) != 1 or tags[0] not in names:
        raise _misfit(path, f"expected one of {', '.join(names)}, got {', '.join(tags) or 'none'}")
    return _value(children[0], branches[names[tags[0]]], shapes, (*path, tags[0]))


def _plain(text: str, kind: str) -> Any:
    """A value of its type; what is none stays text, and the contract says what is wrong."""
    if kind == "string":
        return text
    text = text.strip()
    if kind == "boolean":
        return {"true": True, "1": True, "false": False, "0": False}.get(text, text)
    try:
        number = from_json(text)
    except ValueError:
        return text
    return number if type(number) in {int, float} else text


def _children(element: Element, path: Path) -> list[Element]:
    """The elements in it; between them there may be white space only."""
    if any(text and text.strip() for text in (element.text, *(one.tail for one in element))):
        raise _misfit(path, "text between elements")
    return list(element)


def _items(element: Element, name: str, path: Path) -> list[Element]:
    return [_only(one, name, path) for one in _children(element, path)]


def _pair(children: list[Element], path: Path) -> tuple[Element, Element]:
    if len(children) != 2:
        raise _misfit(path, "expected <entry><key>…</key><value>…</value></entry>")
    return children[0], children[1]


def _only(element: Element, name: str, path: Path) -> Element:
    if _split(element.tag)[1] != name:
        raise _misfit(path, f"expected <{name}>, got <{_split(element.tag)[1]}>")
    return element


def _leaf(element: Element, path: Path) -> str:
    if len(element):
        raise _misfit(path, "expected text, got elements")
    return element.text or ""


def _misfit(path: Path, why: str) -> NotXml:
    return NotXml(f"{'/'.join(_split(part)[1] for part in path)}: {why}")


def _split(tag: str) -> tuple[str, str]:
    """Namespace and local name."""
    namespace, _, name = tag.rpartition("}")
    return namespace[1:], name


def xml_name(name: str) -> str:
    """A field's name as that of an element: what XML does not take there is ``_x<hex>_``.

    >>> xml_name("first name"), xml_name("1st"), xml_name("größe"), xml_name("")
    ('first_x20_name', '_x31_st', 'gr_xF6__xDF_e', '_x_')
    """
    return _NOT_IN_NAME.sub(lambda found: f"_x{ord(found[0]):X}_", name) or "_x_"

"""Every message is an XML document too: there and back without a loss, and hostile ones refused."""

from __future__ import annotations

import re
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
import xmlschema
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lxml import etree
from pydantic import BaseModel, ConfigDict, Field, JsonValue, SecretStr, create_model

from umbel import ContractError, Message, from_xml, to_xml, upcast, xsd_of
from umbel.jobs.xml import MAX_BYTES, MAX_DEPTH, xml_name


class Colour(Enum):
    """Of texts."""

    RED = "red"
    EMPTY = ""


class Level(IntEnum):
    """Of numbers."""

    LOW = 1
    HIGH = 2


class Cat(BaseModel):
    """One branch of a union."""

    kind: Literal["cat"] = "cat"
    lives: int


class Dog(BaseModel):
    """Another."""

    kind: Literal["dog"] = "dog"
    name: str


class Tree(BaseModel):
    """A model that is a part of itself."""

    label: str
    children: list[Tree] = []


class Inner(BaseModel):
    """Bytes as in a message: Pydantic would have them as text."""

    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")


@cache
def xsd(contract: type[Message]) -> tuple[etree.XMLSchema, xmlschema.XMLSchema]:
    """Compiled by two libraries that share no code."""
    text = xsd_of(contract)
    assert text == xsd_of(contract)
    return etree.XMLSchema(etree.fromstring(text.encode())), xmlschema.XMLSchema(text)


def assert_there_and_back(message: Message) -> None:
    """Nothing is lost, and both validators agree with us."""
    document, contract = to_xml(message), type(message)
    assert from_xml(contract, document).payload() == message.payload()
    one, other = xsd(contract)
    one.assertValid(etree.fromstring(document))
    other.validate(document.decode())


# What XML 1.0 can carry; the rest has a test of its own.
texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\ufffe\uffff").filter(
        lambda one: one in "\t\n\r" or one >= " "
    ),
    max_size=8,
)
json_values: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)  # fmt: skip
trees = st.deferred(
    lambda: st.builds(Tree, label=texts, children=st.lists(trees, max_size=2) | st.just([]))
)
LEAVES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (str, texts),
    (int, st.integers()),
    (float, st.floats(allow_nan=False, allow_infinity=False)),
    (bool, st.booleans()),
    (bytes, st.binary(max_size=8)),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False, places=3)),
    (datetime, st.datetimes(timezones=st.just(UTC)) | st.datetimes()),
    (date, st.dates()),
    (timedelta, st.timedeltas()),
    (UUID, st.uuids()),
    (Colour, st.sampled_from(Colour)),
    (Level, st.sampled_from(Level)),
    (Literal["a", "b", None], st.sampled_from(["a", "b", None])),
    (Literal[1, "1", True], st.sampled_from([1, "1", True])),
    (Any, json_values),
    (JsonValue, json_values),
    (Tree, trees),
    (int | str, st.integers() | texts),
    (int | float | bool, st.integers() | st.booleans()),
    (
        Annotated[Cat | Dog, Field(discriminator="kind")],
        st.builds(Cat, lives=st.integers()) | st.builds(Dog, name=texts),
    ),
    (
        Cat | list[Dog] | dict[str, int] | None,
        st.builds(Cat, lives=st.integers())
        | st.lists(st.builds(Dog, name=texts), max_size=2)
        | st.dictionaries(texts, st.integers(), max_size=2)
        | st.none(),
    ),
]
types = st.recursive(
    st.sampled_from(LEAVES),
    lambda inner: st.one_of(
        inner.map(lambda one: (list[one[0]], st.lists(one[1], max_size=3))),
        inner.map(lambda one: (one[0] | None, one[1] | st.none())),
        inner.map(lambda one: (dict[str, one[0]], st.dictionaries(texts, one[1], max_size=3))),
        st.tuples(inner, inner).map(
            lambda two: (tuple[two[0][0], two[1][0]], st.tuples(two[0][1], two[1][1]))
        ),
    ),
    max_leaves=3,
)
names = st.text(st.sampled_from("aZ09 _-.x:@ß\x00<\n5F"), max_size=6)


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Of a contract that was made up a moment ago; a part of it is in a model of its own."""

    def model(name: str, base: type[BaseModel], inner: dict[str, Any], **more: Any) -> Any:
        aliases = draw(st.lists(names, min_size=1, max_size=4, unique=True))
        fields, values = {}, {}
        for number, alias in enumerate(aliases):
            kind, value = draw(types)
            fields[f"field{number}"] = (kind, Field(alias=alias))
            values[alias] = draw(value)
        fields |= {name: (type(one), ...) for name, one in inner.items()}
        made: Any = create_model(name, __base__=base, __module__=__name__, **fields, **more)
        return made(**values, **inner)

    part = model("Part", Inner, {})
    options = {"name": "test.made-up", "version": 3}
    return model("MadeUp", Message, {"part": part}, __cls_kwargs__=options)  # type: ignore[no-any-return]


@settings(max_examples=50, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages())
def test_any_message_of_any_contract_is_lossless(message):
    """Also what XML has no names or types for; and the contract's XSD says the same."""
    assert_there_and_back(message)


class Person(Message, name="test.person", version=2, aliases=["test.human"]):
    """With one of most things."""

    name: str
    born: date | None = None
    tags: list[str] = []
    size: float = Field(default=1.0, alias="size in m")
    key: SecretStr = SecretStr("")


def test_a_document_is_as_plain_as_a_person_would_write_it():
    """The form that is documented."""
    person = Person(name="Ünal & <Co>", tags=["a", ""], key=SecretStr("s"), **{"size in m": 1.5})
    assert to_xml(person).decode() == (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        '<test.person xmlns="urn:umbel:test.person:2" '
        'xmlns:xsi="http://www.w3.org/2001/XMLSchema-instance">'
        '<name>Ünal &amp; &lt;Co&gt;</name><born xsi:nil="true"/>'
        "<tags><item>a</item><item></item></tags>"
        "<size_x20_in_x20_m>1.5</size_x20_in_x20_m><key>s</key></test.person>\n"
    )
    assert_there_and_back(person)


@pytest.mark.parametrize(
    "document",
    [
        "<test.person><name>A</name></test.person>",
        "<test.human>\n  <tags/>\n  <name>A</name>\n</test.human>",
        "<?xml version='1.0' encoding='ISO-8859-1'?><test.person><name>A</name></test.person>",
        "<p:test.person xmlns:p='urn:umbel:test.person:2'><p:name>A</p:name></p:test.person>",
        "<test.person><!-- c --><?pi x?><name><![CDATA[A]]></name><newer>x</newer></test.person>",
    ],
)
def test_what_other_programs_write_is_read(document):
    """Without a namespace, by an old name, in another order or encoding, from a newer producer."""
    assert from_xml(Person, document) == from_xml(Person, document.encode()) == Person(name="A")


def test_an_old_version_is_carried_on():
    """The namespace says which class reads it."""

    class Old(Message, name="test.resize", version=1):
        width: int

    class New(Message, name="test.resize", version=2):
        widths: list[int]

    @upcast(Old, to=New)
    def widths(old: Old) -> New:
        return New(widths=[old.width])

    assert from_xml(New, to_xml(Old(width=3))) == New(widths=[3])
    assert from_xml(New, to_xml(New(widths=[4]))) == New(widths=[4])


BOMB = (
    '<!DOCTYPE b [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;">]>'
    "<test.person><name>&b;</name></test.person>"
)
OUTSIDE = (
    '<!DOCTYPE b [<!ENTITY a SYSTEM "file:///etc/passwd">]>'
    "<test.person><name>&a;</name></test.person>"
)


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (BOMB, "DTD"),
        (OUTSIDE, "DTD"),
        ("<!DOCTYPE b SYSTEM 'http://127.0.0.1:1/x.dtd'><test.person/>", "DTD"),
        (BOMB.encode("utf-16"), "DTD"),
        ("<test.person>&nbsp;</test.person>", "undefined entity"),
        ("<test.person>" * (MAX_DEPTH + 1), "deeper than 100"),
        ("<test.person>" * 500_000, "deeper than 100"),
        ("<a>" + " " * MAX_BYTES + "</a>", "at most"),
        ("<test.person>", "no element found"),
        ("", "no element found"),
        (b"\xff", "unclosed token"),
        (b"<?xml version='1.0' encoding='zip'?><a/>", "encoding"),
        ("<test.person><name>\x00</name></test.person>", "not well-formed"),
        ("<test.other><name>A</name></test.other>", "expected <test.person>, got <test.other>"),
        ("<test.person xmlns='urn:x'/>", "expected no namespace or urn:umbel"),
        ("<test.person xmlns='urn:umbel:test.other:2'/>", "expected <test.person>"),
        ("<test.person/>", "name: Field required"),
        ("<test.person>x<name>A</name></test.person>", "test.person: text between elements"),
        ("<test.person><name>A</name><name>B</name></test.person>", "<name> is there twice"),
        ("<test.person><name><b>A</b></name></test.person>", "name: expected text, got elements"),
        ("<test.person><name>A</name><tags>x</tags></test.person>", "tags: text between"),
        ("<test.person><name>A</name><tags><b>x</b></tags></test.person>", "expected <item>"),
        ("<test.person><name>A</name><born/></test.person>", "born: "),
    ],
)
def test_what_is_hostile_or_wrong_is_refused(document, why):
    """With what is wrong and where, before anything is expanded, fetched or nested deeply."""
    with pytest.raises(ContractError, match=why):
        from_xml(Person, document)


@pytest.mark.parametrize("wrong", ["\x00", "\x1f", "\ufffe", "\uffff"])
def test_a_character_without_a_form_in_xml_is_an_error_that_says_so(wrong):
    """At encoding, with the field."""
    with pytest.raises(ContractError, match=r"tags\.1: the character .* has no form in XML 1.0"):
        to_xml(Person(name="A", tags=["a", f"b{wrong}"]))
    with pytest.raises(ContractError, match="no form in XML"):
        to_xml(Bag(things={wrong: 1}))


class Bag(Message, name="test.bag", version=1):
    """Any names."""

    things: dict[str, int]


@pytest.mark.parametrize(
    "wrong",
    [
        "<test.bag xmlns='urn:umbel:test.bag:1'/>",
        "<test.bag xmlns='urn:umbel:test.bag:1'><things>1</things></test.bag>",
        "<test.bag xmlns='urn:umbel:test.bag:1'><things><entry><key>a</key>"
        "<value>x</value></entry></things></test.bag>",
        "<test.bag><things/></test.bag>",
    ],
)
def test_the_schema_refuses_what_does_not_fit(wrong):
    """In both validators."""
    one, other = xsd(Bag)
    assert not one.validate(etree.fromstring(wrong))
    assert not other.is_valid(wrong)


def test_names_stay_apart():
    """No two fields have one element."""
    awkward = ["", "_x_", "_x20_", " ", "_x5F_", "a b", "a_x20_b", "1", "_x31_", "ß", "xml", "a:b"]
    assert len({xml_name(one) for one in awkward}) == len(awkward)
    assert all(etree.QName(xml_name(one)) for one in awkward)


def test_a_deep_message_has_no_form_that_would_not_be_read():
    """What is written can be read; what is too deep for Python is an error of ours."""
    tree = Tree(label="0")
    for _ in range(20):
        tree = Tree(label="x", children=[tree])

    class Wood(Message, name="test.wood", version=1):
        tree: Tree

    assert sys.getrecursionlimit() >= 1000
    assert_there_and_back(Wood(tree=tree))


def test_the_snippet_of_the_page_runs(capsys):
    """And the document beside it is the one that it makes, but for the declarations."""
    page = (Path(__file__).parents[2] / "docs" / "wire-format.md").read_text()
    [snippet] = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    [document] = re.findall(r"```xml\n(.*?)```", page, re.DOTALL)

    class Greet(Message, name="shop.greet", version=1):
        who: str

    exec(snippet, {"Greet": Greet})
    assert "urn:umbel:shop.greet:1" in capsys.readouterr().out
    assert from_xml(Greet, document) == Greet(who="you")

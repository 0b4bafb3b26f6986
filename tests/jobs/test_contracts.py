"""Contracts: declared explicitly, checked on both sides."""

from __future__ import annotations

from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, SecretBytes, SecretStr, field_serializer

from umbel import ContractError, Message
from umbel.jobs.contracts import contract_of, has_secrets


class Size(BaseModel):
    """A plain model inside a message."""

    width: int
    height: int = 1


class Order(Message, name="test.order", version=3):
    """A message with a bit of everything."""

    number: int = Field(alias="no")
    sizes: list[Size] = []
    note: str | None = None


class Secret(Message, name="test.secret", version=1):
    """Secrets at several depths."""

    class Inner(BaseModel):
        token: SecretStr

    password: SecretStr
    key: SecretBytes = SecretBytes(b"\xff")
    inner: list[Inner] = []
    by_name: dict[int, Inner] = {}


def test_name_and_version_are_explicit():
    """They are on the class, and moving or renaming it would not change them."""
    assert contract_of(Order) == ("test.order", 3)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        ({"name": "Has Spaces", "version": 1}, "no wire name"),
        ({"name": "", "version": 1}, "no wire name"),
        ({"version": 1}, "no wire name"),
        ({"name": "a.b"}, "version=None"),
        ({"name": "a.b", "version": 0}, "version=0"),
        ({"name": "a.b", "version": "1"}, "version='1'"),
        ({"name": "a.b", "version": True}, "version=True"),
    ],
)
def test_a_malformed_contract_is_refused_at_declaration(arguments, problem):
    """With what was given and what is expected."""
    with pytest.raises(TypeError, match=problem):
        type(Message)("Bad", (Message,), {"__module__": __name__}, **arguments)


def test_a_base_without_a_contract_cannot_be_sent():
    """A common base of several messages has none, and using it says what to declare."""

    class Base(Message):
        pass

    with pytest.raises(ContractError, match="declare it as class Base"):
        contract_of(Base)


def test_producers_refuse_what_consumers_let_through():
    """Unknown fields: a typing error when sent, a newer producer when received; at any depth."""
    wire = {"no": 1, "new": 1, "sizes": [{"width": 2, "depth": 3}]}
    with pytest.raises(ContractError) as caught:
        Order.checked(wire)
    assert sorted(caught.value.problems) == [
        "new: Extra inputs are not permitted",
        "sizes.0.depth: Extra inputs are not permitted",
    ]
    assert Order.received(wire) == Order(number=1, sizes=[Size(width=2)])


def test_a_changed_message_is_checked_again():
    """Building it once proves nothing about what it is when it is sent."""
    order = Order(number=1, sizes=[Size(width=2)])
    order.sizes[0].width = "wide"  # type: ignore[assignment]
    with pytest.raises(ContractError, match=r"test\.order: sizes\.0\.width: .*valid integer"):
        Order.checked(order)


def test_a_message_of_another_class_is_refused():
    """Also where its fields would fit."""
    with pytest.raises(ContractError, match="expected a Order, got a Size"):
        Order.checked(Size(width=1))  # type: ignore[arg-type]
    with pytest.raises(ContractError, match="no form in JSON"):
        Order.checked({"no": object()})
    with pytest.raises(ContractError, match="object"):
        Order.checked(5)  # type: ignore[arg-type]


def test_errors_do_not_show_the_input():
    """It may be a secret."""
    with pytest.raises(ContractError) as caught:
        Secret.checked({"password": ["hunter2"]})
    assert "hunter2" not in str(caught.value)


def test_secrets_travel_and_hide():
    """In clear on the wire, stars wherever people look."""
    inner = Secret.Inner(token="t")
    secret = Secret(password="hunter2", inner=[inner], by_name={7: inner})
    assert secret.payload() == {
        "password": "hunter2",
        "key": "_w==",
        "inner": [{"token": "t"}],
        "by_name": {"7": {"token": "t"}},
    }
    assert "hunter2" not in repr(secret)
    assert Secret.received(secret.payload()) == secret
    assert (has_secrets(Secret), has_secrets(Order)) == (True, False)


def test_bytes_are_base64():
    """URL-safe as we write it; a foreign producer's standard alphabet is read too."""

    class Raw(Message, name="test.raw", version=1):
        raw: bytes

    raw = Raw(raw=b"\xff\xfe\xfb?>")
    assert raw.payload() == {"raw": "__77Pz4="}
    for text in ("__77Pz4=", "//77Pz4=", "//77Pz4"):
        assert Raw.received({"raw": text}) == raw
    with pytest.raises(ContractError, match="raw: "):
        Raw.checked({"raw": "no base64!"})


def test_names_on_the_wire_are_the_aliases():
    """Out by alias, in by alias or by name, on both sides."""
    assert Order(number=1).payload() == {"no": 1, "sizes": [], "note": None}
    for wire in ({"no": 1}, {"number": 1}):
        assert Order.checked(wire) == Order.received(wire) == Order(number=1)
    with pytest.raises(ContractError, match="no: Field required"):
        Order.checked({"note": "x"})


@pytest.mark.parametrize("payload", [None, 5, "text", [], [{"no": 1}], {"no": "x"}, {"no": 1.5}])
def test_what_does_not_fit_is_never_received(payload):
    """Whatever JSON it is: one kind of error, with the contract's name."""
    with pytest.raises(ContractError) as caught:
        Order.received(payload)
    assert caught.value.contract == "test.order"
    assert caught.value.problems


def test_text_that_is_no_unicode_is_refused():
    """JSON can spell half of a surrogate pair, UTF-8 cannot."""
    order = Order(number=1)
    order.note = "\ud800"
    for message in (order, {"no": 1, "note": "\ud800"}):
        with pytest.raises(ContractError, match="surrogates"):
            Order.checked(message)


def test_a_strict_message_reads_its_own_wire():
    """JSON has no dates and no tuples; a strict model must still read what it wrote."""

    class Strict(Message, name="test.strict", version=1):
        model_config = ConfigDict(strict=True)
        day: date
        pair: tuple[int, int]
        id: UUID

    strict = Strict(day=date(2026, 1, 2), pair=(1, 2), id=UUID(int=7))
    assert Strict.received(strict.payload()) == strict
    assert Strict.checked(strict) == strict


def test_a_field_may_have_its_own_form_on_the_wire():
    """A custom serializer is part of the contract."""

    class Percent(Message, name="test.percent", version=1):
        value: float

        @field_serializer("value", when_used="json")
        def _text(self, value: float) -> str:
            return f"{value:.1f}"

    assert Percent(value=0.25).payload() == {"value": "0.2"}
    assert Percent.checked(Percent(value=0.5)) == Percent(value=0.5)


class Colour(StrEnum):
    """An enumeration."""

    RED = "red"
    BLUE = "blue"


class Everything(Message, name="test.everything", version=1):
    """Types that JSON has and has not."""

    text: str
    number: int
    ratio: float
    flag: bool
    raw: bytes
    when: datetime
    day: date
    span: timedelta
    price: Decimal
    id: UUID
    colour: Colour
    maybe: Size | None
    pairs: dict[str, tuple[int, str]]
    tags: frozenset[str]


@given(
    st.builds(
        Everything,
        price=st.decimals(allow_nan=False, allow_infinity=False),
        ratio=st.floats(allow_nan=False, allow_infinity=False),
    )
)
def test_every_message_survives_the_wire(message):
    """What is received equals what was sent, and the producer's check changes nothing."""
    assert Everything.received(message.payload()) == message
    assert Everything.checked(message) == message

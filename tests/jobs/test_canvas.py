"""Chains whose steps never fit are refused, and those that may are not."""

from __future__ import annotations

from typing import Any

import pytest
from celery import chain
from pydantic import Field, model_validator

from umbel import ContractError, Message, Umbel


class Ask(Message, name="canvas.ask", version=1):
    question: str


class Answer(Message, name="canvas.answer", version=1):
    answer: int


class Reply(Message, name="canvas.reply", version=1):
    answer: int
    polite: bool = True


class Shaped(Message, name="canvas.shaped", version=1):
    text: str

    @model_validator(mode="before")
    @classmethod
    def shape(cls, data: Any) -> Any:
        return data


class Aliased(Message, name="canvas.aliased", version=1):
    number: int = Field(alias="answer")


app = Umbel("canvas", broker="redis://127.0.0.1:1", publish_timeout_s=0.1)


@app.job
def ask(message: Ask) -> Answer:
    return Answer(answer=42)


@app.job(name="canvas.count")
def count(message: Ask) -> int:
    return 42


@app.job(name="canvas.untyped")
def untyped(message: Ask) -> dict[str, Any]:
    return {"answer": 42}


@app.job
def reply(message: Reply) -> Answer:
    return Answer(answer=message.answer)


@app.job
def shaped(message: Shaped) -> None: ...


@app.job
def aliased(message: Aliased) -> None: ...


@app.task
def plain(x):
    return x


@pytest.mark.parametrize(
    ("first", "then", "why"),
    [
        (ask, ask, "after canvas.ask, whose result is Answer: it has no field answer"),
        (count, reply, "whose result is int: expected an object, and it is of type integer"),
        (reply, count, "whose result is Answer: it has no field answer"),
    ],
)
def test_a_step_that_never_fits_is_refused(first, then, why):
    """With `|` when it is built, else when it is sent, before anything is."""
    start = first.s({"question": "?"} if first is not reply else {"answer": 1})
    with pytest.raises(ContractError, match=why):
        start | then.s()
    with pytest.raises(ContractError, match=why):
        (plain.s(1) | first.s() | then.s()).apply_async()
    with pytest.raises(ContractError, match=why):
        chain(start, then.s()).apply_async()
    with pytest.raises(ContractError, match=why):
        start.apply_async(link=[then.s()])


def test_a_later_step_is_looked_at_too():
    """Steps before it fit, and a step's own message is checked."""
    with pytest.raises(ContractError, match="it has no field answer"):
        ask.s({"question": "?"}) | reply.s() | ask.s()
    with pytest.raises(ContractError, match=r"canvas\.ask: question: Field required"):
        ask.s({"question": "?"}) | ask.si({})
    with pytest.raises(ContractError, match=r"has a message of its own already: \.si"):
        ask.s({"question": "?"}) | reply.s({"answer": 1})


def test_what_may_fit_is_left_to_the_worker():
    """Untyped results, plain tasks, contracts that take another form, aliases."""
    start = ask.s({"question": "?"})
    for then in (reply.s(), shaped.s(), aliased.s(), plain.s(), ask.si({"question": "?"})):
        assert len((start | then).tasks) == 2
    assert len((untyped.s({"question": "?"}) | ask.s()).tasks) == 2
    assert len((plain.s(1) | ask.s()).tasks) == 2
    assert len((start | reply.s() | plain.s() | ask.s()).tasks) == 4

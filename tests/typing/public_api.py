"""What editors and type checkers know; checked by mypy and pyright, never run."""

from typing import assert_type

from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from umbel import (
    Completed,
    Failed,
    Job,
    JobContext,
    JobHandle,
    Message,
    Receipt,
    Saga,
    SagaRun,
    Step,
    Umbel,
    webhooks,
)

app = Umbel("typed")


class Ask(Message, name="typed.ask", version=1):
    question: str


class Answer(Message, name="typed.answer", version=1):
    answer: int


class Other(Message, name="typed.other", version=1):
    pass


@app.job
def bare(message: Ask) -> Answer:
    return Answer(answer=42)


@app.job(queue="typed", name="typed.with-context")
def with_context(message: Ask, context: JobContext) -> Answer:
    context.progress(1, 2)
    return Answer(answer=42)


@app.job(name="typed.async")
async def asynchronous(message: Ask) -> list[Answer]:
    return [Answer(answer=42)]


ask = Ask(question="?")
assert_type(bare, Job[Ask, Answer, Answer])
assert_type(bare(ask), Answer)
assert_type(with_context(ask), Answer)
assert_type(bare.send(ask), Receipt)
assert_type(bare.request(ask), JobHandle[Answer])
assert_type(bare.request(ask).result(10), Answer)
assert_type(with_context.request(ask, delay_s=1).result(), Answer)
assert_type(asynchronous.request(ask).result(1), list[Answer])


async def in_a_loop() -> None:
    assert_type(await asynchronous(ask), list[Answer])
    assert_type(await bare.asend(ask), Receipt)
    handle = await bare.arequest(ask)
    assert_type(await handle.aresult(1), Answer)


# A message of another contract is refused. If a checker did not, the ignore would be unused,
# which is an error too.
bare.send(Other())  # type: ignore[arg-type]


@app.job(name="typed.forget")
def forget(message: Ask) -> None: ...


@app.job(name="typed.other")
def other(message: Other) -> str:
    return "done"


def to_other(run: SagaRun[Ask]) -> Other:
    assert_type(run.message, Ask)
    assert_type(run.result(bare), Answer)
    return Other()


def to_ask(run: SagaRun[Ask]) -> Ask:
    return run.message


simple = app.saga("typed.simple", steps=[Step(bare, undo=forget), Step(with_context)])
assert_type(simple, Saga[Ask])
assert_type(simple.start(ask).result(1).result(bare), Answer)
assert_type(
    app.saga(
        "typed.mixed",
        steps=[
            Step(bare, undo=other, undo_message=to_other),
            Step(other, message=to_other),
            Step(bare, undo=other, message=to_ask, undo_message=to_other),
        ],
    ),
    Saga[Ask],
)
simple.start(Other())  # type: ignore[arg-type]
Step(bare, undo=other)  # type: ignore[misc]
Step(bare, message=to_other)  # type: ignore[arg-type]


@app.job(name="typed.answered")
def answered(message: Completed[Answer]) -> None: ...


@app.job(name="typed.counted")
def counted(message: Completed[int]) -> None: ...


# Callbacks: a job that takes the result, or a URL.
bare.send(ask, on_success=answered, on_failure="https://example.com/failed")
bare.request(ask, on_success="https://example.com/done")
bare.send(ask, on_success=counted)  # type: ignore[arg-type]
bare.send(ask, on_success=7)  # type: ignore[arg-type]

assert_type(webhooks.verify(b"", {}, "whsec_", Completed[Answer]), Completed[Answer])
assert_type(webhooks.verify(b"", {}, [], Completed[Answer], Failed), Completed[Answer] | Failed)


def written(session: Session, loose: AsyncSession) -> None:
    outbox = app.outbox(session)
    assert_type(outbox.send(bare, ask), Receipt)
    assert_type(outbox.request(bare, ask, delay_s=1), JobHandle[Answer])
    app.outbox(loose).send(bare, Other())  # type: ignore[misc]

"""What editors and type checkers know; checked by mypy and pyright, never run."""

from typing import assert_type

from umbel import Job, JobContext, JobHandle, Message, Receipt, Umbel

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

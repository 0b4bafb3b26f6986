"""An order in three steps: all is done, or what was done is undone.

python examples/saga.py

Starts a worker of its own on the embedded broker, and sends two orders.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from umbel import JobContext, Message, Retry, SagaFailed, SagaRun, Step, Umbel

app = Umbel("bikes")


class Order(Message, name="bikes.order", version=1):
    """What the saga is started with."""

    article: str
    card: str


class Reserve(Message, name="bikes.reserve", version=1):
    """Put one aside."""

    article: str


class Charge(Message, name="bikes.charge", version=1):
    """Take the money for what was put aside."""

    card: str
    euros: int


class Refund(Message, name="bikes.refund", version=1):
    """Give it back, if it was taken."""

    payment: str


@app.job
def reserve(message: Reserve) -> int:
    """Returns the price, in euros."""
    print(f"{message.article} is put aside")
    return 700


@app.job(name="bikes.release")
def release(message: Reserve) -> None:
    """Takes what `reserve` took."""
    print(f"{message.article} is back on the shelf")


@app.job(retry=Retry(immediate=1))
def charge(message: Charge, context: JobContext) -> None:
    """The payment's key is the job's id: the same in each run, so it is paid once."""
    if message.card == "expired":
        raise ValueError("the card has expired")
    print(f"{message.euros} euros are paid, payment {context.job_id}")


@app.job
def refund(message: Refund) -> None:
    """Also called when `charge` has failed: perhaps there is nothing to give back."""
    print(f"payment {message.payment} is paid back, if there was one")


@app.job(name="bikes.ship")
def ship(order: Order) -> None:
    """The last step needs no undo: when it succeeds, all is done."""
    print(f"{order.article} is on its way")


def to_reserve(run: SagaRun[Order]) -> Reserve:
    """These functions only compute, for they may be called more than once."""
    return Reserve(article=run.message.article)


def to_charge(run: SagaRun[Order]) -> Charge:
    """What an earlier step returned has its type."""
    return Charge(card=run.message.card, euros=run.result(reserve))


def to_refund(run: SagaRun[Order]) -> Refund:
    """The key is known even where nobody knows whether the payment was made."""
    return Refund(payment=run.job_id(charge))


order = app.saga(
    "order",
    steps=[
        Step(reserve, undo=release, message=to_reserve),
        Step(charge, undo=refund, message=to_charge, undo_message=to_refund),
        Step(ship),
    ],
)


def main() -> None:
    """One order that is done, and one that is undone."""
    done = order.start(Order(article="bike", card="valid"))
    print(f"saga {done.id} is done: {done.result(60).message.article}")

    undone = order.start(Order(article="tandem", card="expired"))
    try:
        undone.result(60)
    except SagaFailed as failure:
        print(failure)
    for step in undone.steps():
        print(f"  {step.name}: {step.state}, runs: {step.attempts}, {step.error or 'no error'}")


if __name__ == "__main__":
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "saga", "worker", "-c", "1", "-l", "WARNING"],
        cwd=Path(__file__).parent,
    )
    try:
        main()
    finally:
        worker.terminate()
        worker.wait()

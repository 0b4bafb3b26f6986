"""The worker's event loop."""

from __future__ import annotations

from umbel.consumers.prefork import Turn

APP = """
from copy import copy
from celery.worker.control import inspect_command
from umbel import Message, Umbel

app = Umbel("shop")

class Say(Message, name="shop.say", version=1):
    text: str

@app.job
def say(message: Say) -> None: ...

@inspect_command()
def turn(state):
    return [call.__module__ for call in copy(state.consumer.hub.on_tick)]
"""


def test_a_turn_is_in_the_order_in_which_it_was_asked_for():
    """Who asks again comes last."""

    def first(): ...
    def second(): ...

    turn = Turn.fromkeys({first, second})
    turn.add(first)
    turn.add(second)
    turn.add(second)
    assert turn.__copy__() == [first, second]
    turn.add(first)
    assert turn.__copy__() == [second, first]


def test_the_pool_comes_after_the_transport(write_app, start_worker, valkey):
    """What is taken while the loop turns is written to the pool before it sleeps; also later."""
    shop = write_app(APP)
    start_worker(shop, pool="prefork")

    def last_two() -> list[str]:
        with shop.app.connection_for_write() as connection:
            options = {"reply": True, "timeout": 5, "limit": 1, "connection": connection}
            [told] = shop.app.control.broadcast("turn", **options)
        [turn] = told.values()
        return turn[-2:]

    order = ["kombu.transport.redis", "celery.concurrency.asynpool"]
    assert last_two() == order
    valkey.kill()
    valkey.restart()
    shop.say.request(shop.Say(text="again")).result(20)
    assert last_two() == order

"""The fixtures that users get, used as they would."""

from __future__ import annotations

import pytest

from umbel import ContractError, Receipt, StoreRequired

APP = """
from umbel import Message, Umbel

app = Umbel("shop")

class Greet(Message, name="shop.greet", version=1):
    who: str

@app.job
def greet(message: Greet) -> str:
    return f"Hello, {message.who}!"

def welcome(who):
    return greet.send(Greet(who=who))
"""


def test_what_was_sent_can_be_asserted(write_app, valkey, umbel_sent):
    """Checked against the contract, kept, and nothing reaches the broker."""
    shop = write_app(APP)
    assert isinstance(shop.welcome("you"), Receipt)
    shop.greet.delay({"who": "me"})
    assert umbel_sent.of(shop.greet) == [shop.Greet(who="you"), shop.Greet(who="me")]
    with pytest.raises(ContractError):
        shop.greet.delay({"whom": "me"})
    assert len(umbel_sent.messages) == 2
    handle = shop.greet.request(shop.Greet(who="them"))
    assert umbel_sent.of(shop.greet)[-1].who == "them"
    with pytest.raises(StoreRequired, match="umbel_worker"):
        handle.result(1)
    assert valkey.client().dbsize() == 0


def test_a_real_worker_runs_for_a_test(write_app, umbel_worker):
    """On an embedded broker of the test's own, gone after it."""
    shop = write_app(APP)
    with umbel_worker(shop.app):
        assert shop.greet.request(shop.Greet(who="you")).result(10) == "Hello, you!"


def test_inline_needs_nothing(write_app):
    """A job is a function."""
    shop = write_app(APP)
    assert shop.greet(shop.Greet(who="you")) == "Hello, you!"

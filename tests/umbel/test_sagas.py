"""Sagas around the core: the command, the page, the example, the users' tests."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner
from support.process import eventually

from umbel import SagaState
from umbel.cli.sagas import sagas

ROOT = Path(__file__).parents[2]

APP = """
from pathlib import Path
from umbel import Message, Step, Umbel

app = Umbel("shop")

class Order(Message, name="shop.order", version=1):
    fails: bool = False

@app.job(name="reserve")
def reserve(order: Order) -> str:
    if order.fails:
        raise ValueError("sold out")
    return "a secret"

@app.job(name="release")
def release(order: Order) -> None:
    if not (Path(__file__).parent / "repaired").exists():
        raise ValueError("no hands")

order = app.saga("order", steps=[Step(reserve, undo=release)])
"""


def test_the_command_shows_sagas_and_helps_one_on(write_app, start_worker):
    """As text and as JSON, without what may be secret."""
    shop = write_app(APP)
    command = [sys.executable, "-m", "celery", "-A", shop.__name__, "sagas", "list"]
    assert subprocess.run(command, capture_output=True).stdout == b"no sagas\n"

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(sagas, arguments, obj=SimpleNamespace(app=shop.app))
        return done.output

    start_worker(shop)
    shop.order.start(shop.Order(), saga_id="1").result(30)
    saga = shop.order.start(shop.Order(fails=True), saga_id="2")
    eventually(lambda: saga.state() is SagaState.STUCK, 30)
    assert re.search(r"succeeded  order/1\n", run("list"))
    [line] = run("list", "--state", "stuck", "--name", "order").splitlines()
    why = "stuck      order/2  reserve: ValueError: sold out; undoing reserve: ValueError: no hands"
    assert line.endswith(why)
    shown = run("show", "order/2")
    assert "  stuck      reserve  ValueError: no hands\n" in shown
    assert f"undo {saga.steps()[0].undo_id}, runs: 1\n" in shown
    assert json.loads(run("show", "order/1", "--json"))["steps"][0]["state"] == "succeeded"
    assert "secret" not in run("list", "--json")
    assert "no saga 'order/3' is known" in run("show", "order/3")
    assert "no saga 'nope' in this app (expected NAME/ID); there are: order" in run("show", "nope")
    assert run("cancel", "order/2") == "stuck\n"
    (Path(shop.__file__).parent / "repaired").touch()
    assert run("resume", "order/2") in {"undoing\n", "undone\n"}
    eventually(lambda: saga.state() is SagaState.UNDONE, 30)


def test_users_tests_see_the_first_step(write_app, umbel_sent):
    """`umbel_sent` needs no store; nothing goes on, for nothing runs."""
    shop = write_app(APP)
    shop.order.start(shop.Order())
    assert umbel_sent.of(shop.reserve) == [shop.Order()]


@pytest.mark.usefixtures("app_dir")
def test_the_snippets_of_the_page_run(umbel_sent):
    """The first declares, the second starts; what it sends fits."""
    declared, started = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "sagas.md").read_text(), re.DOTALL
    )
    names: dict = {"__name__": __name__}
    exec(compile(declared, "sagas.md", "exec"), names)
    exec(compile(started.splitlines()[0], "sagas.md", "exec"), names)
    assert umbel_sent.of(names["reserve"]) == [names["Order"](article="bike", card="1234")]

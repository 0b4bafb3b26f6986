"""The outbox around its core: the command, the page, the example, a missing extra."""

from __future__ import annotations

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import httpx
import pytest
import sqlalchemy
from click.testing import CliRunner
from sqlalchemy.orm import Session

from umbel.cli.outbox import outbox
from umbel.producers.outbox import OutboxDatabase

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "outbox.md").read_text()
APP = """
from pathlib import Path
from umbel import Message, Umbel

app = Umbel("shop", outbox_url=f"sqlite:///{Path(__file__).parent / 'shop.db'}")

class Pack(Message, name="shop.pack", version=1):
    secret: str

@app.job
def pack(message: Pack) -> None: ...
"""


@pytest.fixture
def shop(write_app):
    """An app whose outbox has no table yet."""
    return write_app(APP)


def run(shop, *arguments, status=0):
    done = CliRunner().invoke(outbox, arguments, obj=SimpleNamespace(app=shop.app))
    assert done.exit_code == status, done.output
    return done.output


def test_the_command(shop, broker):
    """Create, list, relay; what is refused is tried again or dropped, by its position or all."""
    assert "Is there a table? celery -A app outbox create" in run(shop, "list", status=1)
    assert run(shop, "create", "--sql").startswith("CREATE TABLE umbel_outbox (")
    run(shop, "create")
    assert run(shop, "list") == "0 wait; 0 refused\n"
    database = shop.app.outbox_database
    with Session(database.engine) as session, session.begin():
        one, two = (
            shop.app.outbox(session).send(shop.pack, shop.Pack(secret="s3cret")) for _ in range(2)
        )
    with database.engine.begin() as connection:
        connection.execute(sqlalchemy.text("UPDATE umbel_outbox SET headers='?' WHERE position=1"))
    listing = run(shop, "list")
    assert re.search(rf"1  .* shop.pack {one.id} -> shop\n2  .* {two.id} -> shop\n", listing)
    assert re.search(r"2 wait, the oldest for \d+ s; 0 refused\n", listing)
    assert run(shop, "relay", "--once") == "1 sent\n"
    assert [one.headers["id"] for one in broker.waiting("shop")] == [two.id]
    [row] = map(json.loads, run(shop, "list", "--refused", "--json").splitlines())
    assert (row["position"], row["id"]) == (1, one.id)
    assert row["error"]
    assert "s3cret" not in listing + run(shop, "list")
    run(shop, "retry", status=2)
    run(shop, "discard", "1", "--all", status=2)
    assert run(shop, "discard", "7") == "0 dropped\n"
    assert run(shop, "retry", "1") == "1 wait again\n"
    run(shop, "relay", "--once")
    assert run(shop, "discard", "--all") == "1 dropped\n"
    other = f"sqlite:///{Path(shop.__file__).parent / 'other.db'}"
    assert run(shop, "create", "--url", other) == ""
    assert run(shop, "relay", "--once", "--url", other) == "0 sent\n"


def test_the_snippet_of_the_page_runs(write_app):
    """A request writes its order, its event and its message; a failed one writes none of them."""
    [snippet] = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    shop = write_app(snippet)
    shop.Base.metadata.create_all(shop.engine)

    async def post(article: str | None = None) -> httpx.Response:
        transport = httpx.ASGITransport(shop.web)
        async with httpx.AsyncClient(transport=transport, base_url="http://shop") as client:
            return await client.post("/orders", params=article and {"article": article})

    job_id = asyncio.run(post("bike")).json()["job"]
    assert asyncio.run(post()).status_code == 422
    rows = shop.app.outbox_database.rows()
    assert [row.name for row in rows] == ["shop.ordered", "shop.pack"]
    assert rows[1].id == job_id
    shop.engine.dispose()


def test_the_statement_of_the_page_is_the_one_for_postgresql():
    """Printed without a server."""
    [statement] = re.findall(r"```sql\n(.*?)```", PAGE, re.DOTALL)
    database = OutboxDatabase("postgresql+psycopg://nowhere/shop", "umbel_outbox")
    assert database.ddl.split() == statement.split()


def test_without_sqlalchemy_it_says_what_to_install():
    """And nothing else needs it."""
    program = (
        "import sys; sys.modules['sqlalchemy'] = None\n"
        "from umbel import Umbel, SettingsError\n"
        "try: Umbel('shop', broker='redis://nowhere').outbox(None)\n"
        "except SettingsError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "the outbox needs SQLAlchemy: pip install 'umbel[outbox]'\n", done.stderr

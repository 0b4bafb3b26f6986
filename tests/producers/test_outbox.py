"""The outbox: messages commit or vanish with the rows beside them, and come in order."""

from __future__ import annotations

import asyncio
import json
import sys
from collections import Counter
from contextlib import ExitStack, closing, contextmanager
from threading import Event as Flag
from threading import Thread

import pytest
from chaos.brokers import held
from sqlalchemy import Integer, create_engine, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from support.process import LocalProcess, eventually

from umbel import BrokerUnavailable, ContractError, SettingsError, Umbel
from umbel.producers.outbox import OutboxDatabase, Relay, outbox_table

APP = """
import os, signal
from pathlib import Path
from umbel import Completed, Event, JobContext, Message, Umbel, WorkQueue

app = Umbel("shop", publish_timeout_s=1.5)
MARKS = Path(__file__).parent / "marks"

class Pack(Message, name="shop.pack", version=1):
    number: int
    note: str = ""

class Ship(Message, name="shop.ship", version=1):
    customer: str

class Sold(Event, name="shop.sold", version=1):
    number: int

@app.job
def pack(message: Pack) -> int:
    with MARKS.open("a") as file:
        file.write(f"{message.number}\\n")
    return message.number

@app.job(queue=WorkQueue("ships", shards=4), shard_key="customer")
def ship(message: Ship) -> None: ...

@app.job(queue=WorkQueue("mails", priorities=True), name="mail")
def mail(message: Pack) -> None: ...

@app.job(name="packed")
def packed(message: Completed[int]) -> None: ...

@app.subscribe(Sold, queue="books")
def book(event: Sold, context: JobContext) -> None:
    with MARKS.open("a") as file:
        file.write(f"{event.number} {context.job_id}\\n")

if "DIE" in os.environ:
    from umbel.producers.outbox import OutboxDatabase
    remove, left = OutboxDatabase.remove, [int(os.environ["DIE"])]

    def dying(*arguments):
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        left[0] -= 1
        remove(*arguments)

    OutboxDatabase.remove = dying
"""
on_both = pytest.mark.brokers("valkey", "rabbitmq")
each_of_both = pytest.mark.parametrize(
    ("broker", "database"), [("valkey", "postgresql"), ("rabbitmq", "sqlite")], indirect=True
)
on_both_databases = pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)


class Base(DeclarativeBase):
    """Of the application's own tables."""


outbox_table(Base.metadata)


class Order(Base):
    """A business row."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(Integer, primary_key=True)


@pytest.fixture
def database(request, app_dir, monkeypatch) -> OutboxDatabase:
    """With the application's tables, and the outbox among them."""
    if getattr(request, "param", "sqlite") == "sqlite":
        url = f"sqlite:///{app_dir / 'shop.db'}"
    else:
        url = request.getfixturevalue("postgres_url")
    monkeypatch.setenv("UMBEL_OUTBOX_URL", url)
    database = OutboxDatabase(url, "umbel_outbox")
    Base.metadata.create_all(database.engine)
    return database


@pytest.fixture
def shop(write_app, database):
    """An app whose outbox is there."""
    return write_app(APP)


@pytest.fixture
def falling_back(app_dir, monkeypatch):
    """What a send does while the broker is away."""
    monkeypatch.setenv("UMBEL_ON_UNAVAILABLE", "outbox")


def write(shop, database, numbers) -> list[str]:
    """Messages in one transaction; their ids."""
    with Session(database.engine) as session, session.begin():
        box = shop.app.outbox(session)
        return [box.send(shop.pack, shop.Pack(number=number)).id for number in numbers]


def drain(shop, database, batch=100) -> int | None:
    return Relay(shop.app.sender, database, batch).drain()


def waiting(broker, queue="shop") -> list[str]:
    """Ids in their order."""
    return [one.headers["id"] for one in broker.waiting(queue)]


def left(database) -> list[str]:
    return [row.id for row in database.rows(limit=5000)]


def marks(shop) -> Counter[str]:
    return Counter(shop.MARKS.read_text().splitlines() if shop.MARKS.exists() else ())


@contextmanager
def relays(shop, database, count=1, batch=10):
    """At work, each in a thread."""
    until = Flag()
    url = database.engine.url
    threads = [
        Thread(
            target=Relay(shop.app.sender, OutboxDatabase(url, "umbel_outbox"), batch).run,
            args=(until,),
        )
        for _ in range(count)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        until.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def start_relay(app_dir):
    """Factory of processes: `celery -A shop outbox relay`."""
    with ExitStack() as processes:

        def start(shop, name="relay", ready="this relay leads", **env) -> LocalProcess:
            command = f"-m celery -A {shop.__name__} outbox relay --batch 10".split()
            relay = LocalProcess(
                name=name, command=[sys.executable, *command], cwd=app_dir, env=env, ready=ready
            )
            processes.enter_context(closing(relay))
            return relay.start()

        yield start


@on_both_databases
def test_messages_and_rows_commit_or_vanish_together(shop, database, broker):
    """A rollback takes both, a savepoint's its own; a commit leaves both."""
    with Session(database.engine) as session:
        session.add(Order(id=1))
        shop.app.outbox(session).send(shop.pack, shop.Pack(number=1))
        session.flush()
        session.rollback()
    with Session(database.engine) as session, session.begin():
        session.add(Order(id=2))
        receipt = shop.app.outbox(session).send(shop.pack, shop.Pack(number=2))
        with session.begin_nested() as savepoint:
            shop.app.outbox(session).publish(shop.Sold(number=3))
            savepoint.rollback()
        assert waiting(broker) == []
    with Session(database.engine) as session:
        assert session.scalars(select(Order.id)).all() == [2]
    assert receipt.name == "shop.pack"
    assert left(database) == [receipt.id]
    assert drain(shop, database) == 1
    assert waiting(broker) == [receipt.id]
    assert left(database) == []


def test_asynchronous_sessions_too(shop, database, broker):
    """The outbox never waits for anything, so that it is the same for both."""

    async def order() -> str:
        engine = create_async_engine(str(database.engine.url).replace("sqlite", "sqlite+aiosqlite"))
        async with AsyncSession(engine) as session, session.begin():
            receipt = shop.app.outbox(session).send(shop.pack, shop.Pack(number=1))
        async with AsyncSession(engine) as session:
            shop.app.outbox(session).send(shop.pack, shop.Pack(number=2))
            await session.rollback()
        await engine.dispose()
        return receipt.id

    expected = asyncio.run(order())
    assert left(database) == [expected]


def test_what_does_not_fit_is_refused_at_once(shop, database):
    """As by any send; nothing is written."""
    with Session(database.engine) as session, session.begin():
        box = shop.app.outbox(session)
        message = shop.Pack(number=1)
        message.number = "many"
        with pytest.raises(ContractError, match="shop.pack: number: .*valid integer"):
            box.send(shop.pack, message)
        with pytest.raises(ContractError, match="expected an Event, got a Pack"):
            box.publish(shop.Pack(number=1))
    assert left(database) == []


VARY = {"umbel-produced-at", "expires", "eta", "id", "root_id"}


@on_both
def test_a_row_is_the_message_that_a_send_would_have_sent(shop, database, broker):
    """Body and headers; ids and moments are those of the writing."""
    options = {"correlation_id": "c", "expires_s": 60, "on_success": shop.packed}
    shop.pack.send(shop.Pack(number=1), job_id="direct", **options)
    with Session(database.engine) as session, session.begin():
        box = shop.app.outbox(session)
        box.send(shop.pack, shop.Pack(number=1), job_id="relayed", **options)
    written = database.size()
    assert (written.waiting, written.refused) == (1, 0)
    drain(shop, database)
    direct, relayed = broker.waiting("shop")
    assert (direct.headers["id"], relayed.headers["id"]) == ("direct", "relayed")
    assert json.loads(direct.body) == json.loads(relayed.body)
    assert direct.headers["expires"] < relayed.headers["expires"]
    assert {k: v for k, v in direct.headers.items() if k not in VARY} == {
        k: v for k, v in relayed.headers.items() if k not in VARY
    }
    assert shop.app.handle("relayed").state() == "queued"


@on_both
def test_where_it_goes_is_settled_when_it_is_written(shop, database, broker):
    """Shard, priority, the moment of a delay."""
    with Session(database.engine) as session, session.begin():
        box = shop.app.outbox(session)
        box.send(shop.ship, shop.Ship(customer="customer-7"))
        box.send(shop.mail, shop.Pack(number=1), priority="high")
        box.send(shop.pack, shop.Pack(number=1), delay_s=3600)
    assert [row.queue for row in database.rows()] == ["ships.0", "mails.high", "shop"]
    with Session(database.engine) as session:
        headers = session.scalars(text("SELECT headers FROM umbel_outbox ORDER BY position")).all()
    assert json.loads(headers[2])["eta"]
    assert drain(shop, database) == 3
    assert len(waiting(broker, "mails.high")) == 1


@on_both
def test_a_tracked_one_and_an_event_arrive(shop, database, start_worker):
    """The handle knows its job once it was sent; a subscriber's handling has its derived id."""
    with start_worker(shop) and Session(database.engine) as session, session.begin():
        box = shop.app.outbox(session)
        handle = box.request(shop.pack, shop.Pack(number=7))
        event = box.publish(shop.Sold(number=8))
    drain(shop, database)
    assert handle.result(10) == 7
    handling = shop.book.handling_id(event.id)
    eventually(lambda: marks(shop) == Counter(["7", f"8 {handling}"]))


@each_of_both
def test_many_come_in_their_order(shop, database, broker):
    """A thousand, in small batches (fewer where a look at each takes its time)."""
    many = 1000 if broker.name == "valkey" else 300
    ids = [one for _ in range(many // 100) for one in write(shop, database, range(100))]
    assert drain(shop, database, batch=30) == many
    assert waiting(broker) == ids
    assert left(database) == []


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_who_commits_late_is_not_passed_over(shop, database, broker):
    """Positions are given before the commit: the lower one may come later."""
    with Session(database.engine) as slow, slow.begin():
        first = shop.app.outbox(slow).send(shop.pack, shop.Pack(number=1)).id
        slow.flush()
        [second] = write(shop, database, [2])
        assert drain(shop, database) == 1
    assert drain(shop, database) == 1
    assert waiting(broker) == [second, first]


@each_of_both
def test_a_relay_that_is_killed_loses_nothing(shop, database, broker, start_relay, start_worker):
    """Between the broker's answer and the removal: what is sent twice has one id and one effect."""
    ids = write(shop, database, range(40))
    dying = start_relay(shop, DIE="2")
    eventually(lambda: not dying.running)
    assert dying.returncode == -9
    assert len(left(database)) == 20
    start_relay(shop, "next")
    eventually(lambda: not left(database))
    assert waiting(broker) == ids[:30] + ids[20:]
    start_worker(shop)
    eventually(lambda: held(broker, "shop") == 0)
    assert marks(shop) == Counter(map(str, range(40)))


@on_both_databases
def test_of_two_relays_one_sends_and_the_other_takes_over(shop, database, broker, start_relay):
    """Nothing comes twice or in another order while both live."""
    ids = write(shop, database, range(100))
    with relays(shop, database, count=2):
        eventually(lambda: not left(database))
    assert waiting(broker) == ids
    first = start_relay(shop)
    with relays(shop, database):
        assert drain(shop, database) is None
        first.kill()
        more = write(shop, database, range(100))
        eventually(lambda: not left(database))
    assert waiting(broker) == ids + more


@on_both
def test_the_relay_outlasts_the_broker(shop, database, broker, start_relay):
    """It waits, and goes on in the same order."""
    relay = start_relay(shop)
    broker.kill()
    ids = write(shop, database, range(30))
    relay.wait_for_log("the outbox waits, trying again in", timeout_s=20)
    assert left(database) == ids
    broker.restart()
    eventually(lambda: not left(database), 30)
    seen = waiting(broker)
    assert list(dict.fromkeys(seen)) == ids
    assert relay.stop() == 0


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_the_relay_outlasts_the_database(shop, database, postgres, broker):
    """Likewise."""
    ids = write(shop, database, range(30))
    with relays(shop, database):
        eventually(lambda: not left(database))
        postgres.restart()
        ids += write(shop, database, range(30))
        eventually(lambda: waiting(broker) == ids, 30)


@pytest.mark.brokers("rabbitmq")
def test_what_the_broker_refuses_is_in_nobodys_way(shop, database, broker):
    """It stays with the server's words, and may be tried again or dropped."""
    with Session(database.engine) as session, session.begin():
        box = shop.app.outbox(session)
        for number, note in enumerate(["", "x" * 3_000_000, ""]):
            box.send(shop.pack, shop.Pack(number=number, note=note))
    first, second, third = left(database)
    assert drain(shop, database) == 2
    # Its channel is closed, perhaps before the server has said that it has the first.
    assert list(dict.fromkeys(waiting(broker))) == [first, third]
    [refused] = database.rows(refused=True)
    assert refused.id == second
    assert "shop.pack was not taken by amqp://" in refused.error
    assert drain(shop, database) == 0
    assert database.retry([refused.position]) == 1
    assert database.size().waiting == 1
    assert drain(shop, database) == 0
    assert database.discard() == 1
    assert left(database) == []


@pytest.mark.brokers("rabbitmq")
def test_of_a_queue_that_is_full_what_is_in_it_was_sent(shop, database, broker):
    """None is refused that is there, none is doubled, although many are confirmed together."""
    limit = {"pattern": "^shop$", "definition": {"max-length": 20}, "apply-to": "queues"}
    broker.api("PUT", f"policies/{broker.vhost}/full", limit)
    ids = write(shop, database, range(100))
    assert 20 <= drain(shop, database, batch=30) < 100
    refused = [row.id for row in database.rows(refused=True, limit=100)]
    assert waiting(broker) + refused == ids


def test_a_server_that_is_full_is_an_outage(shop, database, broker):
    """It refuses everything, for a while: nothing is set aside, and the order stays."""
    ids = write(shop, database, range(3))
    with broker.client() as client:
        client.config_set("maxmemory", 1)
        with pytest.raises(BrokerUnavailable, match="maxmemory"):
            drain(shop, database)
        client.config_set("maxmemory", 0)
    assert database.size().waiting == 3
    assert drain(shop, database) == 3
    assert waiting(broker) == ids


@on_both
@pytest.mark.usefixtures("falling_back")
def test_a_send_goes_to_the_outbox_while_the_broker_is_away(shop, database, broker, start_worker):
    """From then on all do, until it is drained; each has one effect."""
    sent = [shop.pack.send(shop.Pack(number=0)).id]
    broker.freeze()
    try:
        sent += [shop.pack.send(shop.Pack(number=1)).id]
        sent += [shop.pack.request(shop.Pack(number=2)).id]
        sent += [one.id for one in shop.pack.send_many([shop.Pack(number=3)])]
        event = shop.app.publish(shop.Sold(number=4))
    finally:
        broker.thaw()
    sent += [shop.pack.send(shop.Pack(number=5)).id]  # it is back, and behind the others
    assert left(database) == [*sent[1:4], event.id, sent[4]]
    eventually(lambda: drained(shop, database))
    sent += [shop.pack.send(shop.Pack(number=6)).id]
    assert left(database) == []
    assert list(dict.fromkeys(waiting(broker))) == sent
    start_worker(shop)
    assert shop.app.handle(sent[2]).result(20) == 2
    eventually(lambda: shop.app.handle(sent[-1]).state() == "succeeded")
    assert marks(shop) == Counter("012356")


def drained(shop, database) -> bool:
    """Whether it could be: a server that is back may be busy with its own recovery."""
    try:
        return drain(shop, database) is not None
    except BrokerUnavailable:
        return False


@pytest.mark.usefixtures("falling_back")
def test_both_away_is_an_error(shop, database, broker):
    """Nothing was written anywhere, and the caller knows."""
    Base.metadata.drop_all(database.engine)
    broker.kill()
    with pytest.raises(BrokerUnavailable, match="within 1.5 s .*outbox does not") as no:
        shop.pack.send(shop.Pack(number=1, note="s3cret"))
    assert "s3cret" not in str(no.value)


def test_without_the_setting_the_broker_away_is_an_error(shop, database, broker):
    """The caller knows; nothing is kept behind its back."""
    broker.kill()
    with pytest.raises(BrokerUnavailable):
        shop.pack.send(shop.Pack(number=1))
    assert left(database) == []


def test_writing_needs_no_broker(shop, database, broker):
    """Nor the store: what is known of a job is written when it is sent."""
    broker.kill()
    ids = write(shop, database, range(2))
    with Session(database.engine) as session, session.begin():
        handle = shop.app.outbox(session).request(shop.pack, shop.Pack(number=2))
    assert left(database) == [*ids, handle.id]


def test_settings_that_do_not_fit_are_refused(app_dir):
    """With what is missing."""
    with pytest.raises(SettingsError, match="on_unavailable .* an outbox_url beside it"):
        _ = Umbel("shop", on_unavailable="outbox").settings
    with pytest.raises(SettingsError, match="which outbox"):
        _ = Umbel("shop").outbox_database
    with pytest.raises(SettingsError, match="outbox_url: .*expected postgresql"):
        _ = Umbel("shop", outbox_url="nope://x").outbox_database
    with (
        pytest.raises(SettingsError, match="in memory is nobody else's"),
        OutboxDatabase("sqlite://", "umbel_outbox").led(),
    ):
        pass


def test_a_table_of_another_name(shop, database, monkeypatch, broker):
    """One app, one table."""
    shop.app.__dict__.pop("settings", None)
    monkeypatch.setenv("UMBEL_OUTBOX_TABLE", "letters")
    other = OutboxDatabase(database.engine.url, "letters")
    other.create()
    other.create()
    write(shop, database, [1])
    assert left(database) == []
    assert drain(shop, other) == 1
    with create_engine(database.engine.url).connect() as connection:
        assert connection.scalar(select(func.count()).select_from(other.table)) == 0


def test_users_tests_see_what_was_written(shop, database, umbel_sent):
    """As sent, and no row."""
    write(shop, database, [1])
    assert umbel_sent.of(shop.pack) == [shop.Pack(number=1)]
    assert left(database) == []

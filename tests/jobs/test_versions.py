"""Versions and names that change: old messages are carried forward, and nobody is left behind."""

from __future__ import annotations

import json

import pytest
from pydantic import SecretStr
from support.process import eventually

from umbel import ContractError, Event, Message, Umbel, upcast
from umbel.jobs.versions import class_for, received, versions_of


class ScaleV1(Message, name="versions.scale", version=1):
    """The first, under the first name."""

    width: int


class ResizeV2(Message, name="versions.resize", version=2, aliases=("versions.scale",)):
    """Renamed, and with several widths."""

    widths: list[int]


class Resize(Message, name="versions.resize", version=4, aliases=("versions.scale",)):
    """Sizes; version 3 was one that 4 reads as it is."""

    sizes: list[tuple[int, int]]


@upcast(ScaleV1, to=ResizeV2)
def one_width(old: ScaleV1) -> ResizeV2:
    """Version 1 to 2."""
    return ResizeV2(widths=[old.width])


@upcast(ResizeV2, to=Resize)
def squares(old: ResizeV2) -> Resize:
    """Version 2 to 4."""
    return Resize(sizes=[(width, width) for width in old.widths])


NEW = {"sizes": [[5, 5]]}


@pytest.mark.parametrize(
    ("payload", "name", "version"),
    [
        ({"width": 5}, "versions.scale", 1),
        ({"width": 5, "of a newer producer": 1}, "versions.scale", 1),
        ({"widths": [5]}, "versions.resize", 2),
        ({"widths": [5]}, "versions.resize", 1),  # nothing nearer reads it
        (NEW, "versions.resize", 3),
        (NEW, "versions.resize", 4),
        (NEW, "versions.scale", 4),
        (NEW, "versions.scale", None),
        (NEW, None, None),
        ({"width": 5}, None, 1),
        (NEW, "strangers.name", 1),
    ],
)
def test_each_version_is_read_by_its_class_and_carried_on(payload, name, version):
    """By the oldest class at or above it, through every step up to today's."""
    assert received(Resize, payload, name, version) == Resize(sizes=[(5, 5)])


def test_what_fits_no_old_class_is_refused():
    """With the name and the field of the version that it says it is of."""
    with pytest.raises(ContractError, match=r"versions\.scale: width: Field required"):
        received(Resize, NEW, "versions.scale", 1)
    with pytest.raises(ContractError, match=r"versions\.resize: sizes: Field required"):
        received(Resize, {"width": 5}, None, None)


def test_without_a_step_todays_class_reads_the_old():
    """What was only added needs none."""

    class Added(Message, name="versions.added", version=3):
        a: int
        b: int = 2

    assert received(Added, {"a": 1}, "versions.added", 1) == Added(a=1, b=2)
    assert class_for(Added, "versions.added", 1) is Added


def test_a_function_stays_a_function():
    """It is tested without a worker, like a job."""
    assert one_width(ScaleV1(width=3)).widths == [3]
    assert versions_of(Resize) == [Resize, ResizeV2, ScaleV1]


def test_a_step_that_fails_says_which():
    """And does not show what it was given, which may be a secret."""

    class Old(Message, name="versions.fails", version=1):
        token: SecretStr
        how: str

    class New(Message, name="versions.fails", version=2):
        number: int

    @upcast(Old, to=New)
    def fail(old: Old) -> New:
        if old.how == "raise":
            raise ZeroDivisionError("nothing to divide")
        if old.how == "construct":
            return New.model_construct(number="hunter2")  # type: ignore[arg-type]
        return New.model_validate({"number": old.token.get_secret_value()})

    for how, problem in {
        "raise": "ZeroDivisionError: nothing to divide",
        "construct": "number: Input should be a valid integer",
        "validate": "number: Input should be a valid integer",
    }.items():
        with pytest.raises(ContractError) as caught:
            received(New, {"token": "hunter2", "how": how}, "versions.fails", 1)
        assert f"(versions.fails 1 to versions.fails 2): {problem}" in str(caught.value)
        assert "hunter2" not in str(caught.value)


def step(old, to):
    """Declare one."""
    return upcast(old, to=to)(lambda message: message)


def message(name, version, aliases=()):
    """A class."""
    return type(Message)(
        f"V{version}",
        (Message,),
        {"__module__": __name__, "__qualname__": f"{name}.V{version}"},
        name=f"versions.{name}",
        version=version,
        aliases=aliases,
    )


def test_steps_that_lead_nowhere_are_refused_at_declaration():
    """Each with what is wrong."""
    v1, v2, v3 = (message("steps", version) for version in (1, 2, 3))
    for old, to, problem in [
        (v2, v1, "goes the wrong way"),
        (v1, v1, "goes the wrong way"),
        (message("other", 1), v2, r"another contract than versions\.other; .*aliases="),
        (Message, v2, "has no contract"),
    ]:
        with pytest.raises(ContractError, match=problem):
            step(old, to)
    step(v1, v2)
    for old, to in [(v1, v2), (v1, v3), (message("steps", 1), v2)]:
        with pytest.raises(ContractError, match=r"there is one from versions\.steps 1 already"):
            step(old, to)


def test_a_gap_is_refused_when_the_job_is_declared():
    """Old messages would be read as what they are not."""
    v1, v2, v3, v4 = (message("gap", version) for version in (1, 2, 3, 4))
    step(v1, v2)
    step(v3, v4)
    app = Umbel("gap")
    with pytest.raises(ContractError, match=r"leads no further: declare @upcast\(V2, to=…\)"):
        app.job(job_of(v4))
    step(v2, v3)
    assert app.job(job_of(v4)).name == "versions.gap"


def test_a_name_that_is_forgotten_is_refused_when_the_job_is_declared():
    """Its messages would find no job."""
    v1, v2 = message("first", 1), message("second", 2, ["versions.first"])
    v3 = message("second", 3)
    step(v1, v2)
    step(v2, v3)
    with pytest.raises(ContractError, match=r"say so by aliases=\('versions\.first',\)"):
        Umbel("forgotten").job(job_of(v3))


def job_of(contract):
    """A function that takes it."""

    def run(message):
        return None

    run.__annotations__["message"] = contract
    return run


@pytest.mark.parametrize(
    ("aliases", "problem"),
    [
        ("a.b", "expected several"),
        (("A B",), "no wire name"),
        (("a.b", "a.b"), "repeat a name"),
        (("versions.bad",), "repeat a name"),
    ],
)
def test_malformed_aliases_are_refused_at_declaration(aliases, problem):
    """As names are."""
    with pytest.raises(TypeError, match=problem):
        message("bad", 1, aliases)
    with pytest.raises(TypeError, match="no wire name"):
        type(Message)("Bad", (Message,), {"__module__": __name__}, aliases=("a.b",))


def test_an_alias_collides_like_a_name():
    """In whatever order, also with a job that was named otherwise; two apps do not mind."""
    old, new = message("taken", 1), message("taking", 1, ["versions.taken"])
    for first, second in [(old, new), (new, old)]:
        app = Umbel("collide")
        app.job(job_of(first))
        with pytest.raises(ContractError, match=r"versions\.taken: is the name of"):
            app.job(job_of(second))
    app = Umbel("collide")
    app.job(name="versions.taken")(job_of(message("free", 1)))
    with pytest.raises(ContractError, match=r"there is a job 'versions\.taken' already"):
        app.job(job_of(new))


def test_a_job_with_a_name_of_its_own_has_no_other():
    """Its messages carry that name, whatever the contract is called."""
    app = Umbel("own")
    job = app.job(name="versions.own")(job_of(Resize))
    assert job.names == ("versions.own",)
    assert set(app.jobs) == {"versions.own"}


def test_subscribers_hear_an_event_under_each_of_its_names():
    """Old publishers use the old one; a pattern's handler gets the newest class."""

    class Bought(Event, name="versions.bought", version=1):
        pass

    class Sold(Event, name="versions.sold", version=2, aliases=("versions.bought",)):
        pass

    app = Umbel("events")

    @app.subscribe(Sold)
    def book(event: Sold) -> None: ...

    @app.subscribe("versions.*", name="audit")
    def everything(event: Event) -> None: ...

    assert book.work_queue.events == ("versions.sold", "versions.bought")
    for job in (book, everything):
        assert job.contract_for("versions.sold") is Sold
    assert book.contract_for("versions.bought") is Sold


FIRST = """
from pathlib import Path
from umbel import Event, Message, Retry, Umbel

app = Umbel("shop")
DONE = Path(__file__).parent / "done"

class Scale(Message, name="shop.scale", version=1):
    width: int
    fails: bool = False

@app.job(retry=Retry(immediate=1))
def scale(message: Scale) -> str:
    with DONE.open("a") as file:
        file.write(f"first {message.width}\\n")
    assert not message.fails
    return f"first {message.width}"
"""
NEXT = """
from pathlib import Path
from umbel import Message, Retry, Umbel, upcast

app = Umbel("shop")
DONE = Path(__file__).parent / "done"

class ScaleV1(Message, name="shop.scale", version=1):
    width: int
    fails: bool = False

class Scale(Message, {name}):
    widths: list[int]
    fails: bool = False

@upcast(ScaleV1, to=Scale)
def one(old: ScaleV1) -> Scale:
    return Scale(widths=[old.width], fails=old.fails)

@app.job(retry=Retry(immediate=1))
def scale(message: Scale) -> str:
    with DONE.open("a") as file:
        file.write(f"next {{message.widths[0]}}\\n")
    assert not message.fails
    return f"next {{message.widths[0]}}"
"""
SAME_NAME = 'name="shop.scale", version=2'
NEW_NAME = 'name="shop.resize", version=2, aliases=("shop.scale",)'


@pytest.fixture
def first(write_app):
    """The app as it was."""
    return write_app(FIRST, "first")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_workers_of_two_versions_side_by_side(first, write_app, start_worker, pool):
    """On one queue, with producers of both: each message is done, by one that can read it."""
    following = write_app(NEXT.format(name=SAME_NAME), "following")
    start_worker(first, pool=pool, name="first")
    start_worker(following, pool=pool, name="next")
    old = [first.scale.request(first.Scale(width=width)) for width in range(10)]
    new = [following.scale.request(following.Scale(widths=[width])) for width in range(10, 20)]
    for width, handle in enumerate(old):
        assert handle.result(30).split()[1] == str(width)
    for width, handle in enumerate(new, 10):
        assert handle.result(60) == f"next {width}"
    assert first.app.dead_letters.count() == 0
    assert len(first.DONE.read_text().splitlines()) == 20


def test_a_renamed_job_takes_what_was_sent_under_its_old_name(first, write_app, start_worker):
    """From our producers and from plain Celery ones, with results and by its new contract."""
    renamed = write_app(NEXT.format(name=NEW_NAME), "renamed")
    worker = start_worker(renamed)
    assert first.scale.request(first.Scale(width=1)).result(30) == "next 1"
    assert renamed.scale.request(renamed.Scale(widths=[2])).result(30) == "next 2"
    assert renamed.app.send_task("shop.scale", [{"widths": [3]}]).get(30) == "next 3"
    with pytest.raises(ContractError, match="widths: Field required"):
        renamed.app.send_task("shop.scale", [{"width": 3}])
    assert "shop.resize[" in worker.logs()
    assert "shop.scale[" in worker.logs()


def test_a_retry_keeps_the_name_by_which_its_message_came(first, write_app, start_worker, valkey):
    """A worker that was not replaced yet may get the copy, and knows only the old one."""
    renamed = write_app(NEXT.format(name=NEW_NAME), "renamed")
    worker = start_worker(renamed)
    first.scale.send(first.Scale(width=1, fails=True))
    eventually(lambda: first.app.dead_letters.count() == 1)
    worker.kill()
    [letter] = first.app.dead_letters.newest(1)
    assert (letter.headers["task"], letter.attempts) == ("shop.scale", 2)
    assert letter.headers["umbel-version"] == 1
    start_worker(first)
    assert [one.problem for one in first.app.dead_letters.replay()] == [""]
    eventually(lambda: first.DONE.read_text().splitlines()[2:] == ["first 1", "first 1"])


def test_old_dead_letters_are_checked_and_replayed(first, write_app, start_worker):
    """By the class that they were written for; those that cannot be carried on stay."""
    start_worker(first)
    first.scale.send(first.Scale(width=1, fails=True))
    eventually(lambda: first.app.dead_letters.count() == 1)
    renamed = write_app(NEXT.format(name=NEW_NAME), "renamed")
    [would_go] = renamed.app.dead_letters.replay(dry_run=True)
    assert would_go.problem == ""
    broken = write_app(
        NEXT.format(name=NEW_NAME).replace("Scale(widths=[old.width]", "Scale(widths=['?']"),
        "broken",
    )
    [stays] = broken.app.dead_letters.replay(dry_run=True)
    assert "upcast one (shop.scale 1 to shop.resize 2): widths.0: " in stays.problem


def test_what_cannot_be_carried_on_is_quarantined(write_app, start_worker, valkey):
    """And the worker goes on."""
    shop = write_app(NEXT.format(name=SAME_NAME).replace("[old.width]", "['?']"))
    start_worker(shop)
    header = {"umbel-contract": "shop.scale", "umbel-version": 1}
    with shop.app.connection_for_write() as connection:
        producer = connection.Producer()
        producer.publish(
            json.dumps([[{"width": 1}], {}, {}]),
            routing_key="shop",
            headers={"task": "shop.scale", "id": "old", **header},
            content_type="application/json",
            content_encoding="utf-8",
        )
    eventually(lambda: shop.app.dead_letters.count() == 1)
    [letter] = shop.app.dead_letters.newest(1)
    assert letter.reason == "contract"
    assert "upcast one (shop.scale 1 to shop.scale 2)" in letter.error
    assert shop.scale.request(shop.Scale(widths=[2])).result(30) == "next 2"


EVENTS = """
from umbel import Event, Umbel

app = Umbel("shop")

class Sold(Event, {name}):
    order: int

@app.subscribe(Sold)
def book(event: Sold) -> None:
    print(f"booked {{event.order}}")
"""


def test_a_renamed_event_reaches_its_subscriber_from_old_publishers(write_app, start_worker):
    """Who publishes under the old name need not be replaced at once."""
    old = write_app(EVENTS.format(name='name="shop.bought", version=1'), "old")
    new = write_app(
        EVENTS.format(name='name="shop.sold", version=1, aliases=["shop.bought"]'), "new"
    )
    worker = start_worker(new)
    old.app.publish(old.Sold(order=1))
    new.app.publish(new.Sold(order=2))
    eventually(lambda: all(f"booked {order}" in worker.logs() for order in (1, 2)))
    assert new.app.dead_letters.count() == 0

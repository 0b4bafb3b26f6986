"""What a change of contracts breaks: each case in one direction or both."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

import pytest

from umbel import Completed, ContractError, Event, Message, Umbel, upcast
from umbel.jobs.evolution import Comparison, compare, renewed
from umbel.jobs.lockfile import LockFile, default_path
from umbel.jobs.schemas import contracts_of, unmatched_patterns

NAME = "evolving.order"


class Plain(Message, name=NAME, version=1):
    number: int
    note: str = ""


class Wider(Message, name=NAME, version=1):
    number: int
    note: str = ""
    gift: bool = False


class WithoutNote(Message, name=NAME, version=1):
    number: int


class Needy(Message, name=NAME, version=1):
    number: int
    note: str = ""
    card: str


class Textual(Message, name=NAME, version=1):
    number: str
    note: str = ""


class Loose(Message, name=NAME, version=1):
    number: int | str
    note: str = ""


class Second(Message, name=NAME, version=2):
    number: str


class Renamed(Message, name="evolving.purchase", version=1, aliases=[NAME]):
    number: int
    note: str = ""


def app_of(contract: Any, result: Any = None) -> Umbel:
    app = Umbel("evolving")

    def job(message):
        raise NotImplementedError

    job.__annotations__ = {"message": contract, "return": result}
    app.job(name=None if contract is not Completed[int] else "evolving.told")(job)
    return app


def locked(app: Umbel) -> LockFile:
    return LockFile.of(contracts_of(app))


def change(before: Any, after: Any) -> Comparison:
    return compare(locked(app_of(before)), app_of(after))


def test_a_contract_that_did_not_change_breaks_nothing():
    """And there is nothing to be locked."""
    assert change(Plain, Plain) == Comparison((), ())


def test_a_field_with_a_default_may_come_and_go():
    """Consumers let unknown fields through; the lock file is told to follow."""
    assert change(Plain, Wider) == Comparison((), (f"{NAME} 1 (changed)",))
    assert change(Wider, Plain).breaks == ()
    assert change(Plain, WithoutNote).breaks == ()


@pytest.mark.parametrize(
    ("before", "after", "path", "whom", "remedy"),
    [
        (Plain, Needy, "card", "messages that wait", "give it a default, or make it version 2"),
        (Needy, Plain, "card", "workers of the locked release", "keep sending it, or make it"),
        (Plain, Textual, "number", "messages that wait", "make it version 2, with an @upcast"),
        (Plain, Loose, "number", "workers of the locked release", "make it version 2"),
        (Loose, Plain, "number", "messages that wait", "make it version 2"),
    ],
)
def test_what_breaks_says_where_whom_and_what_to_do(before, after, path, whom, remedy):
    """One line for each field, whether it breaks one way or both."""
    [broken] = change(before, after).breaks
    assert (broken.contract, broken.path) == (f"{NAME} 1", path)
    assert broken.whom.startswith(whom)
    assert broken.remedy.startswith(remedy)
    assert "\n" not in str(broken)
    assert str(broken).startswith(f"{NAME} 1: {path}: ")


def test_a_new_version_needs_a_way_to_it():
    """Its producers may write what old workers cannot read: those give it back."""
    [broken] = change(Plain, Second).breaks
    assert broken.remedy == "keep the class of version 1, with an @upcast to the next"

    class First(Message, name=NAME, version=1):
        number: int
        note: str = ""

    class Next(Message, name=NAME, version=2):
        number: str

    @upcast(First, to=Next)
    def to_text(old: First) -> Next:
        return Next(number=str(old.number))

    assert change(Plain, Next) == Comparison((), (f"{NAME} 2 (new)",))
    assert set(locked(app_of(Next)).contracts[NAME].versions) == {1, 2}


def test_an_older_version_that_its_successor_reads_as_it_is_stays_locked():
    """Without a class of its own it is still known what it was."""

    class Next(Message, name=NAME, version=2):
        number: int
        gift: bool = False

    app = app_of(Next)
    assert compare(locked(app_of(Plain)), app).breaks == ()
    lock = renewed(locked(app_of(Plain)), app)
    assert set(lock.contracts[NAME].versions) == {1, 2}
    assert compare(lock, app) == Comparison((), ())


def test_what_is_gone_may_still_be_on_its_way():
    """A contract, a version, an alias."""
    lock = locked(app_of(Renamed))
    assert next(str(one) for one in change(Second, Plain).breaks).startswith(
        f"{NAME} 2: the newest version here is 1; messages that wait"
    )
    [broken] = compare(lock, app_of(Needy)).breaks
    assert broken.why == "nothing reads it any more"

    class Sameness(Message, name="evolving.purchase", version=1):
        number: int
        note: str = ""

    [broken] = change(Renamed, Sameness).breaks
    assert broken.why == f"the alias '{NAME}' is gone"


def test_a_renamed_contract_is_found_by_its_alias():
    """Its old messages are held beside the class that reads them."""
    lock, app = locked(app_of(Plain)), app_of(Renamed)
    assert compare(lock, app).breaks == ()
    assert compare(renewed(lock, app), app) == Comparison((), ())


class Colour(Enum):
    RED = "red"


class Colours(Enum):
    RED = "red"
    BLUE = "blue"


def test_results_must_fit_both_ways():
    """Callers and workers are of two releases for a while, and results have no versions."""
    lock = locked(app_of(Plain, Colour))
    assert compare(lock, app_of(Plain, Colour)).breaks == ()
    [broken] = compare(lock, app_of(Plain, Colours)).breaks
    assert (broken.contract, broken.why) == (f"{NAME} (result)", 'written as "blue", read as "red"')


def test_callbacks_are_locked_by_their_jobs():
    """`Completed` of one type is another message than of another."""
    lock = locked(app_of(Completed[int]))
    assert lock.contracts["evolving.told"].kind == "callback"
    assert compare(lock, app_of(Completed[int])).breaks == ()


def test_the_lock_file_is_the_same_each_time_and_read_back(tmp_path, monkeypatch):
    """Docs and defaults are not in it: they change nothing on the wire."""
    (tmp_path / "umbel.toml").touch()
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    assert default_path() == tmp_path / "contracts.lock.json"
    lock = locked(app_of(Plain))
    lock.write(default_path())
    assert LockFile.read(default_path()) == lock
    assert '"description"' not in default_path().read_text()
    assert '"default"' not in str(lock)
    with pytest.raises(ContractError, match="there is no lock file"):
        LockFile.read(tmp_path / "other.json")
    default_path().write_text('{"format": 2}')
    with pytest.raises(ContractError, match="no lock file of this version"):
        LockFile.read(default_path())


class Sold(Event, name="evolving.sold", version=1):
    number: int


def handler(of: Any) -> Callable[[Any], None]:
    def handle(event):
        raise NotImplementedError

    handle.__annotations__ = {"event": of, "return": None}
    return handle


def test_a_pattern_that_matches_no_known_event_is_found():
    """As AMQP has it, and only among the events that the subscriber takes."""
    app = Umbel("evolving")
    app.subscribe(Sold, name="by-class")(handler(Sold))
    app.subscribe("evolving.*", name="one-word")(handler(Event))
    app.subscribe("evolving.sold.#", name="none-too")(handler(Sold))
    assert unmatched_patterns(app) == []
    app.subscribe("evolving.*.*", name="two-words")(handler(Event))
    app.subscribe("evolvnig.#", "evolving.#", name="mistyped")(handler(Sold))
    assert unmatched_patterns(app) == [("two-words", "evolving.*.*"), ("mistyped", "evolvnig.#")]


def test_an_event_that_is_only_published_is_a_contract_too():
    """No app declares what it publishes."""
    assert "evolving.sold" in {one.name for one in contracts_of(Umbel("other"))}

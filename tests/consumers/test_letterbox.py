"""What is kept of dead letters: within bounds, one for each burial, found by what is known."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from types import ModuleType

import pytest
from support.process import eventually

from umbel.config.errors import UnknownJob
from umbel.config.settings import Settings
from umbel.config.store import Store
from umbel.consumers.deadletters import DeadLetter, Kind, Reason
from umbel.consumers.letterbox import DeadLetters

APP = """
from umbel import Message, Umbel

app = Umbel("shop")

class Fail(Message, name="shop.fail", version=1):
    text: str

@app.job(queue="fragile")
def fail(message: Fail) -> None:
    raise ValueError(message.text)
"""


@pytest.fixture
def letterbox(valkey) -> Callable[..., DeadLetters]:
    """Factory `letterbox(**bounds)`: always the same letters."""
    store = Store(valkey.url, 5)
    return lambda **bounds: DeadLetters(store, "shop", Settings(**bounds))


def a_letter(id_: str, *, body: bytes = b"", **facts: object) -> DeadLetter:
    """One, as a worker would write it."""
    given = {"kind": Kind.DEAD, "reason": Reason.FAILED, "error": "no luck"} | facts
    return DeadLetter(id=id_, body=body, **given)


def ids(letters: DeadLetters, **which) -> list[str]:
    """Those that are meant, the newest first."""
    return [letter.id for letter in letters.find(**which)]


def test_the_oldest_go_when_there_are_too_many(letterbox, caplog):
    """By number; each drop is in the log with its count, and counted."""
    letters = letterbox(dead_letters_max_count=2)
    for id_ in "abcd":
        letters.add(a_letter(id_))
    assert ids(letters) == ["d", "c"]
    assert letters.size().dropped == 2
    records = [record for record in caplog.records if record.name == "umbel.worker"]
    assert [(one.levelname, one.action, one.letters) for one in records] == [
        ("WARNING", "dead_letters_dropped", 1)
    ] * 2


def test_the_oldest_go_when_they_are_too_large(letterbox):
    """By bytes, as they are stored; one large letter may cost several small ones."""
    letters = letterbox(dead_letters_max_bytes="5 kB")
    for id_ in "abc":
        letters.add(a_letter(id_))
    assert ids(letters) == ["c", "b", "a"]
    letters.add(a_letter("large", body=bytes(3000)))
    assert ids(letters)[0] == "large"
    assert letters.count() < 4
    assert letters.size().bytes <= 5000


def test_the_newest_stays_however_large(letterbox):
    """What was just buried is never the one that goes."""
    letters = letterbox(dead_letters_max_bytes=100)
    letters.add(a_letter("a"))
    letters.add(a_letter("b", body=bytes(3000)))
    assert ids(letters) == ["b"]


def test_the_old_go(letterbox, valkey):
    """By age, at the next letter or the next look."""
    letters = letterbox(dead_letters_max_age_s=3600)
    for id_ in "ab":
        letters.add(a_letter(id_))
    hour_ago = datetime.now(UTC) - timedelta(hours=1, seconds=1)
    valkey.client().zadd("shop:deadletters:by-time", {"a": hour_ago.timestamp()})
    assert ids(letters) == ["b"]
    assert letters.size() == (1, letters.size().bytes, 1)


def test_a_bound_that_is_lowered_holds_at_once(letterbox):
    """The next look has it, also where more goes than one step of the server drops."""
    for number in range(1205):
        letterbox().add(a_letter(str(number)))
    letters = letterbox(dead_letters_max_count=2)
    assert ids(letters) == ["1204", "1203"]
    assert letters.size().dropped == 1203


def test_workers_that_bury_at_once_count_each_other(letterbox, valkey):
    """One step on the server: the bound holds exactly, and so does the count of bytes."""
    letters = letterbox(dead_letters_max_count=20)

    def bury(worker: int) -> None:
        for number in range(25):
            letters.add(a_letter(f"{worker}.{number % 20}", body=bytes(number)))

    with ThreadPoolExecutor(4) as workers:
        list(workers.map(bury, range(4)))
    stored = valkey.client().hvals("shop:deadletters")
    assert len(stored) == letters.count() == 20
    assert letters.size().bytes == sum(map(len, stored))
    assert letters.discard(until=datetime.now(UTC) + timedelta(days=1)) == 20
    assert letters.size()[:2] == (0, 0)


def test_letters_are_found_by_what_is_known_of_them(letterbox, valkey):
    """All that is given has to hold; ids may be those of jobs."""
    letters = letterbox()
    letters.add(a_letter("a", job="shop.fail", queue="fragile", job_id="job-[1]*"))
    letters.add(a_letter("job-7.1", job="shop.fail", job_id="job-7", reason=Reason.CRASHED))
    letters.add(a_letter("job-7.2", job="shop.add", job_id="job-7"))
    letters.add(a_letter("job-70.1", kind=Kind.QUARANTINE, reason=Reason.MALFORMED))
    letters.add(a_letter("job-[1]*.1", job_id="job-[1]*"))
    earlier = int(datetime.now(UTC).timestamp()) - 1000
    valkey.client().zadd("shop:deadletters:by-time", {"a": earlier + 0.5})
    assert ids(letters, kind=Kind.QUARANTINE) == ["job-70.1"]
    assert ids(letters, reason=Reason.CRASHED) == ["job-7.1"]
    assert ids(letters, job="shop.fail") == ["job-7.1", "a"]
    assert ids(letters, job="shop.fail", queue="fragile") == ["a"]
    at = datetime.fromtimestamp(earlier + 0.5, UTC)
    assert ids(letters, until=at) == ids(letters, since=at, until=at) == ["a"]
    assert "a" not in ids(letters, since=at + timedelta(microseconds=1))
    assert ids(letters, limit=2) == ["job-[1]*.1", "job-70.1"]
    assert [one.id for one in letters.find("job-7", oldest_first=True)] == ["job-7.1", "job-7.2"]
    assert [one.id for one in letters.find("job-7", "a", job="shop.fail")] == ["job-7.1", "a"]
    assert [one.id for one in letters.find("job-[1]*")] == ["job-[1]*.1"]
    assert letters.get("a").died_at == at
    with pytest.raises(UnknownJob, match="no dead letter 'job'"):
        letters.find("a", "job")


def test_a_letter_that_was_buried_again_is_not_discarded(letterbox):
    """What was read is what goes: a later burial of the same message is another matter."""
    letters = letterbox()
    letters.add(a_letter("a"))
    [read] = letters.find()
    letters.add(a_letter("a", error="again"))
    assert letters._remove([read]) == 0
    assert [one.error for one in letters.find()] == ["again"]
    assert letters.discard("a") == 1


def test_discarding_all_has_to_be_said(letterbox):
    """No filter at all is an error."""
    letters = letterbox()
    letters.add(a_letter("a"))
    with pytest.raises(ValueError, match="say which"):
        letters.discard()
    assert letters.count() == 1


@pytest.mark.brokers("valkey", "rabbitmq")
def test_an_id_that_is_used_again_has_a_letter_of_its_own(write_app, start_worker, broker):
    """A message that comes twice is one letter, another message with its id is another."""
    shop: ModuleType = write_app(APP)

    def send(text: str) -> None:
        message = ({"text": text},)
        shop.fail.apply_async(message, task_id="job-7", ignore_result=True, queue="fragile")

    worker = start_worker(shop)
    for number in (1, 2):  # also of the same text
        send("x")
        eventually(lambda number=number: shop.app.dead_letters.count() == number)
    worker.stop()
    first, second = shop.app.dead_letters.newest(9)
    assert first.job_id == second.job_id == "job-7"
    assert first.produced_at > second.produced_at
    shop.app.dead_letters.replay(first.id)
    start_worker(shop)
    eventually(lambda: shop.app.dead_letters.count() == 2)
    assert {one.id for one in shop.app.dead_letters.newest(9)} == {first.id, second.id}

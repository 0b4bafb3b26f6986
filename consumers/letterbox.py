"""Where dead letters and the quarantine are kept: in the state store, within bounds."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from functools import cached_property
from itertools import islice
from typing import Any, NamedTuple, TypedDict, Unpack

from redis.commands.core import Script

from umbel.config.errors import UnknownJob
from umbel.config.settings import Settings
from umbel.config.store import Store
from umbel.consumers.deadletters import DeadLetter, Kind, Reason

logger = logging.getLogger("umbel.worker")


class Which(TypedDict, total=False):
    """Which letters are meant: those for which all that is given holds.

    Attributes:
        kind: dead or quarantined.
        reason: which case.
        job: the job's name.
        queue: where the message waited.
        since: died then or later, aware.
        until: died then or before, aware.
        limit: most of them.
    """

    kind: Kind | None
    reason: Reason | None
    job: str | None
    queue: str | None
    since: datetime | None
    until: datetime | None
    limit: int | None


class Size(NamedTuple):
    """How much there is.

    Attributes:
        letters: how many, of both kinds.
        bytes: as they are stored.
        dropped: how many the bounds have cost, ever.
    """

    letters: int
    bytes: int
    dropped: int


# Keys of both scripts: letters by id, ids by time of death, bytes of all letters, how many were
# dropped ever.
_DROP = """
local function drop(id)
    redis.call('DECRBY', KEYS[3], redis.call('HSTRLEN', KEYS[1], id))
    redis.call('HDEL', KEYS[1], id)
    redis.call('ZREM', KEYS[2], id)
end
"""

# Keep a letter, and drop the oldest while there is too much. In one step: two workers that bury at
# once count each other.
# Arguments: most bytes, most letters, longest age in seconds, most to drop in one step (nobody else
# is served meanwhile), then id and letter, or neither to look at the bounds alone.
# Returns how many were dropped for a bound.
_KEEP = (
    _DROP
    + """
local now = redis.call('TIME')
local id, dropped = ARGV[5], 0
if id then
    drop(id)  -- the same burial, written before
    redis.call('HSET', KEYS[1], id, ARGV[6])
    redis.call('ZADD', KEYS[2], now[1] .. '.' .. string.format('%06d', now[2]), id)
    redis.call('INCRBY', KEYS[3], #ARGV[6])
end
while dropped < tonumber(ARGV[4]) do
    local oldest = redis.call('ZRANGE', KEYS[2], 0, 1, 'WITHSCORES')
    if not oldest[1] then break end
    local many = redis.call('ZCARD', KEYS[2]) > tonumber(ARGV[2])
    local large = tonumber(redis.call('GET', KEYS[3])) > tonumber(ARGV[1])
    local alone = not oldest[3]  -- the newest stays, however large it is
    local old = now[1] - oldest[2] > tonumber(ARGV[3])
    if not (old or (many or large) and not alone) then break end
    drop(oldest[1])
    dropped = dropped + 1
end
if dropped > 0 then redis.call('INCRBY', KEYS[4], dropped) end
return dropped
"""
)

# Drop letters, each only if it is the burial that was read and not a later one of the same message.
# Arguments: pairs of an id and the time of death. Returns how many went.
_REMOVE = (
    _DROP
    + """
local gone = 0
for i = 1, #ARGV, 2 do
    local died = redis.call('ZSCORE', KEYS[2], ARGV[i])
    if died and tonumber(died) == tonumber(ARGV[i + 1]) then
        drop(ARGV[i])
        gone = gone + 1
    end
end
return gone
"""
)

_DROPPED_AT_ONCE = 1000
_PAGE = 50
"""Letters that are read at once."""


class DeadLetters:
    """The dead letters and the quarantine of one app.

    When there are too many, too large or too old, the oldest go (``dead_letters_max_…``).

    Args:
        store: where they are.
        namespace: the app's prefix of every key.
        settings: with the bounds.
    """

    def __init__(self, store: Store, namespace: str, settings: Settings) -> None:
        self._store = store
        self._letters = f"{namespace}:deadletters"
        self._by_time = f"{namespace}:deadletters:by-time"
        self._bytes = f"{namespace}:deadletters:bytes"
        self._dropped = f"{namespace}:deadletters:dropped"
        self._keys = (self._letters, self._by_time, self._bytes, self._dropped)
        self._bounds = (
            int(settings.dead_letters_max_bytes),
            settings.dead_letters_max_count,
            settings.dead_letters_max_age_s,
        )

    def add(self, letter: DeadLetter) -> None:
        """Keep it. Settle the message only after this has returned."""
        self._keep(letter.id, letter.model_dump_json())

    def newest(self, most: int) -> Iterator[DeadLetter]:
        """Up to so many of them, the newest first."""
        return self.find(limit=most)

    def find(
        self, *ids: str, oldest_first: bool = False, page: int = _PAGE, **which: Unpack[Which]
    ) -> Iterator[DeadLetter]:
        """Those that are meant and there now, the newest first; read page by page.

        Args:
            ids: of letters, or of their jobs; without any, all.
            oldest_first: the other way round.
            page: how many are read at once.
            which: what has to hold besides.

        Raises:
            UnknownJob: there is none of an id.
        """
        since, until = which.pop("since", None), which.pop("until", None)
        limit = which.pop("limit", None)
        chosen = self._chosen(ids, since, until)
        facts = {name: wanted for name, wanted in which.items() if wanted is not None}
        matching = (
            letter
            for letter in self._read(chosen if oldest_first else chosen[::-1], page)
            if all(getattr(letter, name) == wanted for name, wanted in facts.items())
        )
        return islice(matching, limit)

    def get(self, letter_id: str) -> DeadLetter:
        """One, whole, by its id or by its job's id (the newest, where that has several).

        Raises:
            UnknownJob: there is none.
        """
        for letter in self.find(letter_id):
            return letter
        raise _unknown(letter_id)

    def discard(self, *ids: str, **which: Unpack[Which]) -> int:
        """Drop letters for good. Returns how many; one that was buried again meanwhile stays.

        Args:
            ids: of letters, or of their jobs.
            which: what has to hold besides.

        Raises:
            UnknownJob: there is none of an id; nothing was dropped.
            ValueError: neither ids nor anything else: that would be all of them.
        """
        if not ids and not any(which.values()):
            raise ValueError("discard() of all dead letters: say which, until=now for all")
        letters = self.find(*ids, oldest_first=True, **which)
        gone = 0
        while page := list(islice(letters, _PAGE)):
            gone += self._remove(page)
        return gone

    def count(self) -> int:
        """How many there are, of both kinds."""
        return int(self._store.client.hlen(self._letters))

    def size(self) -> Size:
        """How much there is, and how much the bounds have cost."""
        size, dropped = self._store.client.mget(self._bytes, self._dropped)
        return Size(self.count(), int(size or 0), int(dropped or 0))

    def is_there(self, letter: DeadLetter) -> bool:
        """Whether a letter that was read is still the one there is."""
        died = self._store.client.zscore(self._by_time, letter.id)
        return bool(died == letter.died_at.timestamp())

    def _keep(self, *letter: str) -> None:
        bounds = (*self._bounds, _DROPPED_AT_ONCE)
        dropped = step = self._keep_script(keys=self._keys, args=[*bounds, *letter])
        while step == _DROPPED_AT_ONCE:  # a bound was lowered
            step = self._keep_script(keys=self._keys, args=bounds)
            dropped += step
        if dropped:
            logger.warning(
                "dropped the %d oldest dead letters: no more than %d bytes and %d letters of no "
                "more than %d s are kept (UMBEL_DEAD_LETTERS_MAX_BYTES, …_COUNT, …_AGE_S)",
                *(dropped, *self._bounds),
                extra={"action": "dead_letters_dropped", "letters": dropped},
            )

    def _remove(self, letters: Iterable[DeadLetter]) -> int:
        pairs = [(letter.id, repr(letter.died_at.timestamp())) for letter in letters]
        return int(
            self._remove_script(keys=self._keys, args=[part for pair in pairs for part in pair])
        )

    def _chosen(
        self, ids: Sequence[str], since: datetime | None, until: datetime | None
    ) -> list[tuple[str, float]]:
        """Ids with the time of death, the oldest first."""
        self._keep()
        first = since.timestamp() if since else float("-inf")
        last = until.timestamp() if until else float("inf")
        if not ids:
            client: Any = self._store.client  # one of redis-py's many answers
            return list(client.zrangebyscore(self._by_time, first, last, withscores=True))
        named = {id_: died for name in ids for id_, died in self._named(name)}
        return sorted(
            ((id_, died) for id_, died in named.items() if first <= died <= last),
            key=lambda letter: letter[1],
        )

    def _named(self, name: str) -> list[tuple[str, float]]:
        client = self._store.client
        ids = [name] if client.hexists(self._letters, name) else self._ids_of_job(name)
        died = [(id_, client.zscore(self._by_time, id_)) for id_ in ids]
        if found := [(id_, float(at)) for id_, at in died if at is not None]:
            return found
        raise _unknown(name)

    def _ids_of_job(self, job_id: str) -> list[str]:
        """An id begins with its job's; what is special in a pattern stands for any character."""
        pattern = re.sub(r"[*?\[\]\\^-]", "?", job_id[:100]) + ".*"
        found = self._store.client.hscan_iter(self._letters, match=pattern, count=1000)
        return [id_ for id_, text in found if DeadLetter.model_validate_json(text).job_id == job_id]

    def _read(self, chosen: Sequence[tuple[str, float]], page: int) -> Iterator[DeadLetter]:
        for start in range(0, len(chosen), page):
            some = chosen[start : start + page]
            texts = self._store.client.hmget(self._letters, [id_ for id_, _ in some])
            for text, (_, died) in zip(texts, some, strict=True):
                if text:
                    letter = DeadLetter.model_validate_json(text)
                    letter.died_at = datetime.fromtimestamp(died, UTC)
                    yield letter

    @cached_property
    def _keep_script(self) -> Script:
        return self._store.client.register_script(_KEEP)

    @cached_property
    def _remove_script(self) -> Script:
        return self._store.client.register_script(_REMOVE)


def _unknown(name: str) -> UnknownJob:
    return UnknownJob(f"no dead letter {name!r}; `deadletters list` shows their ids")

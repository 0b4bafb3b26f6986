"""What is known of a tracked job: one hash in the store, changed by one script.

A record's state only moves forward, and an outcome once written stays: whoever comes second (a
copy of the message, a worker that was thought dead) is told what is already there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import cached_property, partial
from typing import Any, Self

from pydantic import BaseModel, Field
from redis.commands.core import Script

from umbel.config.errors import UnknownJob
from umbel.config.store import Store
from umbel.jobs.watch import awatch, watch

UNFINISHED_TTL_S = 30 * 24 * 3600
"""How long the record of a job is kept that has not ended: longer than any delay."""

# Keys: the record. Arguments: the new state, seconds to live once ended and before, the fence of
# the run that says so (0 for none), then fields and their values.
# Returns the state that the record is in afterwards, and whether the run is to end: somebody wants
# it cancelled, or a later run has begun since (its fence is higher) and what this one says is void.
_MOVE = """
local final = {succeeded=1, failed=1, cancelled=1, expired=1}
local record, to = KEYS[1], ARGV[1]
local state = redis.call('HGET', record, 'state')
local wanted = redis.call('HGET', record, 'cancel')
if final[state] or (to == 'queued' and state) then
    return {state, wanted}
end
local fence = tonumber(ARGV[4])
if fence > 0 then
    if fence < tonumber(redis.call('HGET', record, 'fence') or 0) then return {state, '1'} end
    redis.call('HSET', record, 'fence', ARGV[4])
end
if to == 'cancel' then
    if not state then return {false, false} end
    redis.call('HSET', record, 'cancel', '1')
    wanted = '1'
    -- A run notices by itself; what only waits is cancelled here and now.
    to = state == 'running' and 'running' or 'cancelled'
elseif to == 'running' and wanted and state ~= 'running' then
    to = 'cancelled'
end
local now = redis.call('TIME')
local at = now[1] .. '.' .. string.format('%06d', now[2])
redis.call('HSET', record, 'state', to, 'updated_at', at)
redis.call('HSETNX', record, 'created_at', at)
if #ARGV > 4 then redis.call('HSET', record, unpack(ARGV, 5)) end
redis.call('EXPIRE', record, final[to] and ARGV[2] or ARGV[3])
redis.call('PUBLISH', record, to)
return {to, wanted}
"""

# Let a job that failed begin anew: the one way out of an end.
# Keys: the record. Arguments: which burial is undone, the job's name, seconds to live, 1 for asking
# only. Returns false, or the state that forbids it. Queued forbids it too (an end may be about to
# be written), unless it is this very replay, interrupted before its message was sent.
_REPLAY = """
local record = KEYS[1]
local state, replay = unpack(redis.call('HMGET', record, 'state', 'replay'))
if state and state ~= 'failed' and not (state == 'queued' and replay == ARGV[1]) then
    return state
end
if ARGV[4] == '1' then return false end
local now = redis.call('TIME')
local at = now[1] .. '.' .. string.format('%06d', now[2])
redis.call('HDEL', record, 'error', 'traceback', 'progress', 'attempt', 'cancel')
redis.call('HSET', record, 'state', 'queued', 'replay', ARGV[1], 'name', ARGV[2], 'updated_at', at)
redis.call('HSETNX', record, 'created_at', at)
redis.call('EXPIRE', record, ARGV[3])
redis.call('PUBLISH', record, 'queued')
return false
"""


class JobState(StrEnum):
    """Where a tracked job is."""

    QUEUED = "queued"
    RUNNING = "running"
    RETRYING = "retrying"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    @property
    def final(self) -> bool:
        """Whether the job has ended."""
        return self not in (JobState.QUEUED, JobState.RUNNING, JobState.RETRYING)


class Progress(BaseModel):
    """How far a job is.

    Attributes:
        done: units done, in whatever unit the job counts.
        total: units in all; None where that is not known.
        note: what the job is at, for people.
    """

    done: float = Field(ge=0)
    total: float | None = Field(default=None, gt=0)
    note: str = ""

    @property
    def percent(self) -> float | None:
        """From 0 to 100, or None where the total is not known."""
        return min(100.0, 100 * self.done / self.total) if self.total else None


@dataclass(frozen=True)
class Record:
    """A tracked job at one moment.

    Attributes:
        job_id: its id.
        name: the job's name, which is its contract's.
        state: where it is.
        attempt: the run it is in, from 1; 0 before the first.
        progress: what it last reported.
        result: its result as JSON types, once it has succeeded.
        error: what went wrong, for people, once it has failed.
        traceback: the worker's traceback, where there is one.
        cancel_requested: whether somebody wants it cancelled.
        created_at: when it was sent, UTC, by the store's clock.
        updated_at: when its state last changed, likewise.
    """

    job_id: str
    name: str
    state: JobState
    attempt: int
    progress: Progress | None
    result: Any
    error: str | None
    traceback: str | None
    cancel_requested: bool
    created_at: datetime
    updated_at: datetime

    @classmethod
    def read(cls, job_id: str, fields: dict[Any, Any]) -> Self:
        """From the hash's fields.

        Raises:
            UnknownJob: when there are none.
        """
        if "state" not in fields:
            raise UnknownJob(f"no job {job_id!r} is known: never tracked, or its record expired")
        progress = fields.get("progress")
        return cls(
            job_id=job_id,
            name=fields.get("name", ""),
            state=JobState(fields["state"]),
            attempt=int(fields.get("attempt", 0)),
            progress=Progress.model_validate_json(progress) if progress else None,
            result=json.loads(fields.get("result", "null")),
            error=fields.get("error"),
            traceback=fields.get("traceback"),
            cancel_requested="cancel" in fields,
            created_at=_time(fields["created_at"]),
            updated_at=_time(fields["updated_at"]),
        )


def _time(text: str) -> datetime:
    return datetime.fromtimestamp(float(text), UTC)


class Records:
    """The records of one app.

    Args:
        store: where they are.
        namespace: the app's prefix of every key.
        ttl_s: how long an outcome is kept, in seconds.
    """

    def __init__(self, store: Store, namespace: str, ttl_s: int) -> None:
        self._store = store
        self._namespace = namespace
        self._ttl_s = ttl_s

    def queued(self, job_id: str, name: str) -> JobState:
        """Before the message is sent. A record that is there already (a repeat) stays as it is."""
        return self._must(self._move(job_id, "queued", name=name))

    def all_queued(self, jobs: Iterable[tuple[str, str]]) -> None:
        """The same for several, by id and name, in one round trip."""
        with self._store.client.pipeline(transaction=False) as together:
            for job_id, name in jobs:
                arguments = ("queued", self._ttl_s, UNFINISHED_TTL_S, 0, "name", name)
                self._script(keys=[self._key(job_id)], args=arguments, client=together)
            together.execute()

    def running(
        self,
        job_id: str,
        *,
        name: str,
        attempt: int,
        progress: Progress | None = None,
        fence: int = 0,
    ) -> tuple[JobState, bool]:
        """A run begins or goes on. Returns the state, which may be an end, and if to end the run.

        Args:
            job_id: whose run.
            name: the job's.
            attempt: which run, from 1.
            progress: what is new, if anything.
            fence: grows from one delivery to the next: what an earlier one says later is void.
        """
        fields: dict[str, str | int] = {"name": name, "attempt": attempt}
        if progress:
            fields["progress"] = progress.model_dump_json()
        state, wanted = self._move(job_id, "running", fence, **fields)
        return self._must((state, wanted)), wanted

    def retrying(self, job_id: str, error: str, fence: int = 0) -> JobState:
        """A run failed and another will follow."""
        return self._must(self._move(job_id, "retrying", fence, error=error))

    def succeeded(self, job_id: str, result: Any, fence: int = 0) -> JobState:
        """The end. `result` is JSON types."""
        return self._must(self._move(job_id, "succeeded", fence, result=json.dumps(result)))

    def ended(
        self,
        job_id: str,
        state: JobState,
        error: str,
        traceback: str | None = None,
        fence: int = 0,
    ) -> JobState:
        """The end without a result."""
        return self._must(self._move(job_id, state, fence, error=error, traceback=traceback or ""))

    def replayed(
        self, job_id: str, name: str, burial: str, *, dry_run: bool = False
    ) -> JobState | None:
        """A failed job is queued again, before its message is sent. Returns what forbids it.

        Args:
            job_id: whose record; one that has expired is made anew.
            name: the job's.
            burial: which end is undone: the same for a repeat of one replay, and for no other.
            dry_run: change nothing.
        """
        arguments = (burial, name, UNFINISHED_TTL_S, int(dry_run))
        state = self._replay_script(keys=[self._key(job_id)], args=arguments)
        return JobState(state) if state else None

    def forget(self, job_id: str) -> None:
        """Let a job that has ended be sent again under its id, whatever its end was."""
        self._store.client.delete(self._key(job_id))

    def cancel(self, job_id: str) -> JobState:
        """Ask for the end: at once when the job waits, else when it notices.

        Raises:
            UnknownJob: there is no record.
        """
        state, _ = self._move(job_id, "cancel", error="cancelled")
        if state is None:
            raise UnknownJob(f"no job {job_id!r} is known: never tracked, or its record expired")
        return state

    async def acancel(self, job_id: str) -> JobState:
        """The same, without blocking the event loop."""
        return await asyncio.to_thread(self.cancel, job_id)

    def read(self, job_id: str) -> Record:
        """The record now.

        Raises:
            UnknownJob: there is none.
        """
        return Record.read(job_id, self._store.client.hgetall(self._key(job_id)))

    async def aread(self, job_id: str) -> Record:
        """The same, without blocking the event loop."""
        client = await self._store.async_client()
        fields = await client.hgetall(self._key(job_id))
        return Record.read(job_id, fields)

    def watch(self, job_id: str, timeout_s: float | None = None) -> Iterator[Record]:
        """The record now and at each change, up to its end or until the time is over.

        Raises:
            UnknownJob: there is none, or it expired meanwhile.
        """
        read = partial(self.read, job_id)
        return watch(self._store, self._key(job_id), read, _is_final, timeout_s)

    def awatch(self, job_id: str, timeout_s: float | None = None) -> AsyncIterator[Record]:
        """The same, without blocking the event loop."""
        read = partial(self.aread, job_id)
        return awatch(self._store, self._key(job_id), read, _is_final, timeout_s)

    @cached_property
    def _script(self) -> Script:
        return self._store.client.register_script(_MOVE)

    @cached_property
    def _replay_script(self) -> Script:
        return self._store.client.register_script(_REPLAY)

    def _key(self, job_id: str) -> str:
        return f"{self._namespace}:job:{job_id}"

    def _move(
        self, job_id: str, to: str, fence: int = 0, **fields: str | int
    ) -> tuple[JobState | None, bool]:
        flat = [part for pair in fields.items() for part in pair]
        arguments = [to, self._ttl_s, UNFINISHED_TTL_S, fence, *flat]
        state, wanted = self._script(keys=[self._key(job_id)], args=arguments)
        return (JobState(state) if state else None), bool(wanted)

    @staticmethod
    def _must(answer: tuple[JobState | None, bool]) -> JobState:
        state, _ = answer
        assert state is not None  # only `cancel` leaves a missing record missing
        return state


def _is_final(record: Record) -> bool:
    return record.state.final

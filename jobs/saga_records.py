"""The sagas in the store: one document each, changed in one step or not at all."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from typing import Any

from redis.client import Pipeline

from umbel.config.errors import UnknownJob
from umbel.config.store import Store
from umbel.jobs.saga_state import SagaRecord
from umbel.jobs.watch import awatch, watch


class SagaRecords:
    """The sagas of one app.

    Args:
        store: where they are.
        namespace: the app's prefix of every key.
        ttl_s: how long one is kept that has ended, in seconds; until then it is kept for ever.
    """

    def __init__(self, store: Store, namespace: str, ttl_s: int) -> None:
        self._store = store
        self._prefix = f"{namespace}:saga:"
        self._ttl_s = ttl_s

    def begin(self, record: SagaRecord) -> SagaRecord:
        """Keep a new one. Returns the one that is there, which may be older."""
        key = f"{record.name}/{record.id}"
        if self._store.client.set(self._key(key), record.model_dump_json(), nx=True):
            return record
        return self.read(key)

    def move(self, key: str, change: Callable[[SagaRecord], bool]) -> SagaRecord:
        """Change one in one step, or not at all. Returns it as it is then.

        Args:
            key: its name and its id, ``order/17``.
            change: says whether it changed anything; called again when somebody else was faster.

        Raises:
            UnknownJob: there is none.
        """

        def attempt(pipe: Pipeline) -> SagaRecord:
            record = self._parsed(key, pipe.get(self._key(key)))
            pipe.multi()
            if change(record):
                record.updated_at = datetime.now(UTC)
                ttl_s = self._ttl_s if record.state.final else None
                pipe.set(self._key(key), record.model_dump_json(), ex=ttl_s)
                pipe.publish(self._key(key), record.state)
            return record

        transaction: Any = self._store.client.transaction  # its types know no value
        moved: SagaRecord = transaction(attempt, self._key(key), value_from_callable=True)
        return moved

    def read(self, key: str) -> SagaRecord:
        """The saga now.

        Raises:
            UnknownJob: there is none.
        """
        return self._parsed(key, self._store.client.get(self._key(key)))

    async def aread(self, key: str) -> SagaRecord:
        """The same, without blocking the event loop."""
        client = await self._store.async_client()
        return self._parsed(key, await client.get(self._key(key)))

    def watch(self, key: str, timeout_s: float | None = None) -> Iterator[SagaRecord]:
        """The saga now and at each move, until it rests or the time is over."""
        return watch(self._store, self._key(key), partial(self.read, key), _rests, timeout_s)

    def awatch(self, key: str, timeout_s: float | None = None) -> AsyncIterator[SagaRecord]:
        """The same, without blocking the event loop."""
        return awatch(self._store, self._key(key), partial(self.aread, key), _rests, timeout_s)

    def find(self, name: str = "*") -> Iterator[SagaRecord]:
        """Those that are there, of one name or of all, in no order."""
        for found in self._store.client.scan_iter(self._key(f"{name}/*"), count=1000):
            if text := self._store.client.get(found):
                yield SagaRecord.model_validate_json(text)

    def waits_for(self, key: str, job_id: str) -> bool:
        """Whether there is such a saga, and it waits for this job."""
        try:
            step = self.read(key).awaited
        except UnknownJob:
            return False
        return step is not None and step.awaited_id == job_id

    def _key(self, key: str) -> str:
        return self._prefix + key

    def _parsed(self, key: str, text: Any) -> SagaRecord:
        if text is None:
            raise UnknownJob(f"no saga {key!r} is known: never started, or its record has expired")
        return SagaRecord.model_validate_json(text)


def _rests(record: SagaRecord) -> bool:
    return record.state.rests

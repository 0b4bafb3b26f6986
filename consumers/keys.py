"""What must not run twice: at the same time (concurrency key), or at all (idempotency key).

Who runs holds a lock in the store, renewed as long as the process lives. A message that finds it
taken is sent again with a pause: it waits on the broker's side, and no worker waits for it.
"""

from __future__ import annotations

import json
import os
import random
import threading
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from time import monotonic
from typing import Any, Protocol, Self

from redis import Redis, RedisError
from redis.exceptions import LockError
from redis.lock import Lock

from umbel.consumers.outcomes import Done, Returned
from umbel.jobs.keys import key_of
from umbel.jobs.wire import Sealed

RENEWALS = 4
"""How often a lock is renewed in its time."""
SHORTEST_S, LONGEST_S = 0.3, 5.0
"""Pauses before a message looks again whether its key is free: half of how long it has waited."""


class Once:
    """What came of idempotency keys, and the locks of both kinds of key.

    Args:
        client: of the state store.
        namespace: the app's prefix of every key.
        lease_s: how long a lock of a process is kept that is not heard any more.
        ttl_s: how long an outcome is remembered.
    """

    def __init__(self, client: Redis, namespace: str, lease_s: float, ttl_s: int) -> None:
        self._client = client
        self._namespace = namespace
        self._ttl_s = ttl_s
        self.lease_s = lease_s

    def lock(self, name: str) -> Lock:
        """The lock of a key, not yet taken."""
        name = f"{self._namespace}:lock:{name}"
        return Lock(self._client, name, timeout=self.lease_s, thread_local=False)

    def remember(self, key: str, result: Sealed) -> None:
        """What the one run returned."""
        self._client.set(self._key(key), json.dumps(result.value), ex=self._ttl_s)

    def recall(self, key: str) -> Sealed | None:
        """What it returned, if there was one."""
        known: Any = self._client.get(self._key(key))
        if known is None:
            return None
        return Sealed(json.loads(known), f"the result of an earlier one with the key {key}")

    def _key(self, key: str) -> str:
        return f"{self._namespace}:once:{key}"


class App(Protocol):
    """What is needed of an app."""

    @property
    def once(self) -> Once: ...


class Reserved:
    """The keys that one delivery holds; free again when this is left.

    Attributes:
        once: the idempotency key under which its result is to be remembered.
    """

    def __init__(self, app: App) -> None:
        self._app = app
        self._locks: list[Lock] = []
        self.once: str | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for lock in self._locks:
            _renewals.forget(lock)
            with suppress(LockError, RedisError):  # it ends by itself
                lock.release()

    @property
    def lost(self) -> bool:
        """Whether another may have got one of them: this process was not heard for too long."""
        return any(_renewals.lost(lock) for lock in self._locks)

    def reserve(self, delivery: Any, message: Any) -> Returned | Done | None:
        """Take the keys of a message, or say what is to come of it instead of a run.

        Raises:
            ContractError: the message has no such key.
        """
        job = delivery.job
        if not (job.concurrency_key or job.idempotency_key) or self._locks:
            return None  # has none, or a run before this one took them, in the same place
        kinds = {"concurrency_key": job.concurrency_key, "idempotency_key": job.idempotency_key}
        keys = {which: key_of(which, key, message) for which, key in kinds.items() if key}
        for which, key in keys.items():
            if not self._take(f"{which}:{job.name}:{key}"):
                self.__exit__()
                self._locks.clear()
                why = f"another runs with {which} {key}"
                return Returned(why, counted=False, delay_s=_pause_s(delivery), quiet=True)
        if "idempotency_key" in keys:
            self.once = f"{job.name}:{keys['idempotency_key']}"
            if known := self._app.once.recall(self.once):
                return Done(known)
        return None

    def _take(self, name: str) -> bool:
        lock = self._app.once.lock(name)
        if not lock.acquire(blocking=False):
            return False
        self._locks.append(lock)
        _renewals.keep(lock, self._app.once.lease_s)
        return True


def _pause_s(delivery: Any) -> float:
    """The longer it has waited, the longer; at random, so that not all come at once."""
    produced_at = delivery.envelope.produced_at
    age = datetime.now(UTC) - datetime.fromisoformat(produced_at) if produced_at else timedelta()
    longest_s = min(LONGEST_S, max(SHORTEST_S, age.total_seconds() / 2))
    return random.uniform(SHORTEST_S, longest_s)  # noqa: S311  nobody gains by guessing it


class _Renewals:
    """The locks of this process, kept by a thread of its own; a forked child begins with none."""

    def __init__(self) -> None:
        self._forget_all()
        os.register_at_fork(after_in_child=self._forget_all)

    def _forget_all(self) -> None:
        self._held_until: dict[Lock, float] = {}
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def keep(self, lock: Lock, lease_s: float) -> None:
        """Renew it from now on."""
        with self._changed:
            self._held_until[lock] = monotonic() + lease_s
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._run, args=(lease_s,), name="umbel-locks", daemon=True
                )
                self._thread.start()
            self._changed.notify()

    def forget(self, lock: Lock) -> None:
        """Not any more."""
        with self._changed:
            self._held_until.pop(lock, None)

    def lost(self, lock: Lock) -> bool:
        """Whether it may be another's by now."""
        return monotonic() > self._held_until.get(lock, 0)

    def _run(self, lease_s: float) -> None:
        while True:
            with self._changed:
                self._changed.wait(lease_s / RENEWALS if self._held_until else None)
                held = [lock for lock in self._held_until if not self.lost(lock)]
            for lock in held:
                self._renew(lock, lease_s)

    def _renew(self, lock: Lock, lease_s: float) -> None:
        began = monotonic()
        try:
            lock.reacquire()
            until = began + lease_s
        except LockError:  # another's, or let go at this very moment
            until = 0.0
        except (RedisError, OSError):
            return  # tried again; once its time is over it is lost
        with self._changed:
            if lock in self._held_until:
                self._held_until[lock] = until


_renewals = _Renewals()

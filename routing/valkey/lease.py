"""This process as a consumer on one server: alive as long as it says so, in a thread of its own.

What it holds is given back to the others once it has not been heard for a lease: killed, stopped
or cut off. A process that was only stopped or cut off is told when it is back: its lease has
another id then, and whoever runs a job under the old one learns so from `holding`, also in a pool's
children, by a page of memory that they share.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import logging
import mmap
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any
from uuid import uuid4

import redis

from umbel.routing.valkey.elements import come_back
from umbel.routing.valkey.scripts import BEAT, DELAYED, RESTORE, SETTLE, UNPARK, split_claim

logger = logging.getLogger("umbel.delivery")

CLAIM_PROPERTY = "umbel-claim"
"""The message property that names its claim: ``<lease>:<number>.<channel>``."""

ABANDONED_S = 60.0
"""How long the server may take to read the last words of a channel that was lost."""

BEATS = 5
"""How often a lease is renewed in its time."""

LOOK_S = 0.1
"""Time after which the lease's thread looks at what a busy event loop does not come to."""

_PRIORITY = "\x06\x16"
"""Kombu's separator of a queue's name and a priority, in the key of a ready list."""

MOST_DUE = 500
"""Most delayed messages that go back to their queues in one step."""


class Holding(Enum):
    """Whether a message is still in the hands of this process."""

    YES = "yes"
    UNKNOWN = "unknown"
    """The server was not heard for a lease: it may be gone."""
    NO = "no"


class _Page:
    """Which lease this process has and until when, where forked children see it.

    Written by one process, read by many; the id is written while no time is.
    """

    _FORM = struct.Struct("=d32s")

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, self._FORM.size)
        self.owner = os.getpid()

    def write(self, lease: str, until: float) -> None:
        if self.until(lease) is None:
            self._memory[:8] = struct.pack("=d", 0.0)
            self._memory[8:] = lease.encode()
        self._memory[:8] = struct.pack("=d", until)

    def until(self, lease: str) -> float | None:
        """None if the process has another one, or none."""
        until, known = self._FORM.unpack(self._memory)
        return until if known == lease.encode() else None


_page = _Page()


def holding(claim: str) -> Holding:
    """Whether a message is still held by this process or, in a pool's child, by its parent.

    Args:
        claim: of the message's properties.
    """
    until = _page.until(claim.partition(":")[0])
    if until is None:
        return Holding.NO
    return Holding.YES if _now_s() < until else Holding.UNKNOWN


_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


def _now_s() -> float:
    """Goes on while the machine sleeps, where there is such a clock."""
    return time.clock_gettime(_CLOCK)


class Lease:
    """One server's view of this process.

    Args:
        connect: makes a client of the server, for this lease alone.
        prefix: of every key.
        lease_s: after this time unheard, others take what this process holds.

    Attributes:
        id: changes when the lease was lost.
    """

    def __init__(self, connect: Callable[[], redis.Redis], prefix: str, lease_s: float) -> None:
        self._client: Any = connect()
        self._prefix = prefix
        self.lease_s = lease_s
        self.id = ""
        self._lock = threading.Lock()
        self._settled: set[str] = set()
        self._begun: set[str] = set()
        self._returned: set[str] = set()
        self._abandoned: dict[int, tuple[float, set[str]]] = {}
        self._look: list[Callable[[], None]] = []
        self._soon = False
        self._due_at = 0.0
        self._wake = threading.Event()
        self._over = threading.Event()
        self._begin()
        threading.Thread(target=self._run, name="umbel-lease", daemon=True).start()
        atexit.register(self.end)

    def claims_key(self, lease: str | None = None) -> str:
        """The hash of what a consumer holds."""
        return f"{self._prefix}_umbel.claims.{lease or self.id}"

    def begun_key(self, lease: str | None = None) -> str:
        """The set of those whose job has begun."""
        return f"{self._prefix}_umbel.begun.{lease or self.id}"

    def own_key(self, lease: str | None = None) -> str:
        """The set of what ends with a consumer, see `own`."""
        return f"{self._prefix}_umbel.own.{lease or self.id}"

    @property
    def delayed_key(self) -> str:
        """The sorted set of what waits for its time."""
        return f"{self._prefix}{DELAYED}"

    @property
    def consumers_key(self) -> str:
        """The sorted set of all consumers."""
        return f"{self._prefix}_umbel.consumers"

    def settle(self, claims: Iterable[str], begun: Iterable[str] = ()) -> None:
        """See to it that claims are dropped, and noted as begun, once the server can be reached."""
        self._later(self._settled, claims)
        self._later(self._begun, begun)

    def give_back(self, claims: Iterable[str]) -> None:
        """See to it that these go back to their queues, likewise."""
        self._later(self._returned, claims)

    def own(self, tables: Sequence[str], binding: str, lists: Sequence[str]) -> None:
        """A queue that ends with this process, however that ends.

        Args:
            tables: the keys of the sets of bindings that it is in.
            binding: its member there.
            lists: the keys of its ready lists.
        """
        self._client.sadd(self.own_key(), json.dumps([tables, binding, lists]))

    def abandon(self, channel: int, keep: Iterable[str]) -> None:
        """A channel is closed: what it held goes back, known here or not, but for `keep`."""
        with self._lock:
            self._abandoned[channel] = time.monotonic() + ABANDONED_S, set(keep)
        self._wake.set()

    def every_beat(self, look: Callable[[], None]) -> None:
        """Call this at each beat, from the lease's thread, and when `look_soon` was called."""
        self._look.append(look)

    def look_soon(self) -> None:
        """There is something to look at in `LOOK_S`."""
        if not self._soon:
            self._soon = True
            self._wake.set()

    def due_in(self, seconds: float) -> None:
        """Something is parked for so long: then it goes back to its queue."""
        if (due_at := time.monotonic() + seconds) < self._due_at:
            self._due_at = due_at
            self._wake.set()

    def forget(self, look: Callable[[], None]) -> None:
        """Not any more."""
        with contextlib.suppress(ValueError):
            self._look.remove(look)

    def end(self) -> None:
        """The process ends in good order: give back what it still holds, uncounted."""
        if self._over.is_set() or os.getpid() != _page.owner:
            return
        self._over.set()
        self._wake.set()
        with contextlib.suppress(redis.RedisError, OSError):
            self._flush()
            self._restore(self.id, [(name, b"") for name in self._held()])
            self._drop_own(self.id)
            self._client.delete(self.own_key())
            self._client.zrem(self.consumers_key, self.id)
            self._client.close()

    def _later(self, of: set[str], claims: Iterable[str]) -> None:
        with self._lock:
            of.update(claims)
        self._wake.set()

    def _held(self) -> list[str]:
        return [name.decode() for name in self._client.hkeys(self.claims_key())]

    def _begin(self) -> None:
        self.id = uuid4().hex
        self._abandoned.clear()
        began_s = _now_s()
        self._beat(first=True)
        _page.write(self.id, began_s + self.lease_s)

    def _run(self) -> None:
        pause_s = self.lease_s / BEATS
        beat_at = time.monotonic() + pause_s
        while not self._over.is_set():
            self._wake.wait(max(0.0, min(beat_at, self._due_at) - time.monotonic()))
            self._wake.clear()
            if self._soon:
                self._over.wait(LOOK_S)
                self._soon = False
            try:
                if time.monotonic() >= beat_at:
                    beat_at = time.monotonic() + pause_s
                    self._renew()
                    self._due_at = 0.0  # others park too
                if time.monotonic() >= self._due_at:
                    self._unpark()
                self._flush()
            except (redis.RedisError, OSError) as error:
                # Tried again at the next beat; what it means for the lease, the server will say.
                logger.debug("no beat: %r", error)
            except Exception:  # the thread's edge: a lease must not end by a fault in one message
                logger.exception("a beat failed")
            for look in tuple(self._look):
                look()

    def _renew(self) -> None:
        began_s = _now_s()
        alive, *dead = self._beat()
        if alive:
            _page.write(self.id, began_s + self.lease_s)
        else:
            logger.warning(
                "not heard for %g s: other workers have what this one held; its jobs are cancelled",
                self.lease_s,
                extra={"action": "lease_lost", "lease": self.id},
            )
            self._begin()
        for consumer in dead:
            self._take_over(consumer.decode())

    def _beat(self, *, first: bool = False) -> list[Any]:
        keys = [self.consumers_key, f"{self._prefix}_umbel.beat_at"]
        lease_ms = int(self.lease_s * 1000)
        arguments = [self.id, lease_ms, lease_ms // BEATS, int(first)]
        answer: list[Any] = self._client.eval(BEAT, len(keys), *keys, *arguments)
        return answer

    def _take_over(self, consumer: str) -> None:
        """Give back what a dead consumer held; what it had begun counts as a run."""
        ended = self._drop_own(consumer)
        claims = self._client.hgetall(self.claims_key(consumer))
        begun = self._client.smembers(self.begun_key(consumer))
        back, passed = [], []
        for name, claim in claims.items():
            key, element = split_claim(claim)
            if key in ended:
                passed.append(name)
                continue
            queue = key.removeprefix(self._prefix).partition(_PRIORITY)[0]
            tag = f"{consumer}:{name.decode()}"
            back.append((name.decode(), come_back(element, int(name in begun), queue, tag)))
        if passed:
            self._client.hdel(self.claims_key(consumer), *passed)
        self._client.delete(self.own_key(consumer))
        count = self._restore(consumer, back)
        logger.warning(
            "worker process gone: %d of its messages are back in their queues, %d had begun",
            count,
            len(begun),
            extra={"action": "taken_over", "consumer": consumer, "messages": count},
        )

    def _drop_own(self, consumer: str) -> set[str]:
        """Drop the queues that end with a consumer. Returns the keys of their ready lists."""
        ended: set[str] = set()
        for one in self._client.smembers(self.own_key(consumer)):
            tables, binding, lists = json.loads(one)
            for table in tables:
                self._client.srem(table, binding)
            self._client.delete(*lists)
            ended.update(lists)
        return ended

    def _unpark(self) -> None:
        # Before the question: what is parked meanwhile may be due earlier.
        self._due_at = float("inf")
        left_ms = int(self._client.eval(UNPARK, 1, self.delayed_key, MOST_DUE))
        if left_ms >= 0:
            self.due_in(left_ms / 1000)

    def _flush(self) -> None:
        with self._lock:
            settled, begun, returned = set(self._settled), set(self._begun), set(self._returned)
            # Seen together: what a channel had settled when it was abandoned does not go back.
            abandoned = {channel: set(keep) for channel, (_, keep) in self._abandoned.items()}
        for lease, (done, runs, back) in _by_lease(settled, begun - settled, returned - settled):
            keys = [self.claims_key(lease), self.begun_key(lease)]
            self._client.eval(SETTLE, len(keys), *keys, len(runs), *runs, *done)
            if back:
                self._restore(lease, [(name, b"") for name in back])
        if abandoned:
            self._give_back_abandoned(abandoned)
        with self._lock:
            self._settled -= settled
            self._begun -= begun
            self._returned -= returned
            for channel, (until, kept) in list(self._abandoned.items()):
                kept.difference_update(settled)
                if time.monotonic() > until and not kept:
                    del self._abandoned[channel]

    def _give_back_abandoned(self, keep: dict[int, set[str]]) -> None:
        """What the server has of these channels, but for what is to be kept of each."""
        back = [
            (name, b"")
            for name in self._held()
            if (kept := keep.get(int(name.rpartition(".")[2]))) is not None
            and f"{self.id}:{name}" not in kept
        ]
        self._restore(self.id, back)

    def _restore(self, consumer: str, claims: Sequence[tuple[str, bytes]]) -> int:
        keys = [self.claims_key(consumer), self.begun_key(consumer), self.consumers_key]
        pairs = sorted(claims, key=lambda claim: int(claim[0].partition(".")[0]), reverse=True)
        flat = [part for pair in pairs for part in pair]
        return int(self._client.eval(RESTORE, len(keys), *keys, consumer, *flat))


def _by_lease(*groups: Iterable[str]) -> Iterable[tuple[str, list[list[str]]]]:
    """The names of the claims in each group, by their lease."""
    found: dict[str, list[list[str]]] = {}
    for place, claims in enumerate(groups):
        for claim in claims:
            lease, _, name = claim.partition(":")
            found.setdefault(lease, [[] for _ in groups])[place].append(name)
    return found.items()


class Leases:
    """The leases of this process, one for each server; a forked child begins with none."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._leases: dict[Any, Lease] = {}
        os.register_at_fork(after_in_child=self._forget)

    def of(
        self, server: Any, connect: Callable[[], redis.Redis], prefix: str, lease_s: float
    ) -> Lease:
        """The lease on a server, begun if there is none.

        Args:
            server: names the server and its database.
        """
        global _page  # noqa: PLW0603  the page is the process's; a child needs one of its own
        with self._lock:
            if (server, prefix) not in self._leases:
                if _page.owner != os.getpid():
                    _page = _Page()
                self._leases[server, prefix] = Lease(connect, prefix, lease_s)
            return self._leases[server, prefix]

    def end(self) -> None:
        """Give back what is held: the process ends, or stops consuming."""
        with self._lock:
            leases, self._leases = self._leases, {}
        for lease in leases.values():
            lease.end()

    def _forget(self) -> None:
        self._lock = threading.Lock()
        self._leases = {}


leases = Leases()

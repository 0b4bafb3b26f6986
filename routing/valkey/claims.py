"""What one channel takes from its queues: in batches, and without waiting for answers.

Commands go out on one connection, packed; their answers are read when they come. While the queues
are empty nothing is asked: the server says when a list that this channel watches changes (client
tracking), or another consumer that is busy passes a message on, and both arrive on a second
connection.

A batch is what may run now and, where jobs are so short that waiting for the server would take
longer than they do, some more: a few milliseconds' work, which goes back when it is not begun soon.
"""

from __future__ import annotations

import logging
import math
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from time import monotonic
from typing import Any

import redis

from umbel.routing.service import Service
from umbel.routing.times import seconds_until
from umbel.routing.valkey.elements import in_time, read_element
from umbel.routing.valkey.lease import BEATS, CLAIM_PROPERTY, LOOK_S, Lease
from umbel.routing.valkey.pipe import Command, Pipe, accepted
from umbel.routing.valkey.scripts import CLAIM, PARK, SETTLE

logger = logging.getLogger("umbel.delivery")

UNLIMITED = 100
"""Most messages of one claim where the consumer named no prefetch limit."""
MOST_AHEAD = 256
"""Most messages claimed beyond what may run now, of a worker."""
AHEAD_S = 0.02
"""Time within which what is claimed ahead should be begun."""
STALE_S = LOOK_S
"""Time after which what is claimed ahead and not begun goes back."""

SETTLE_EVERY_S = 0.005
"""Longest time for which a settlement waits for others while there is work."""


class LeaseLost(redis.ConnectionError):
    """Others have what this process held; a consumer begins anew after it."""


class Claims:
    """The claims of one channel.

    Attributes:
        queues: what is taken from.
        closed: whether that is over.
        call_later: the event loop's timer, if there is one.

    Args:
        connect: makes a connection object of the channel's server.
        lease: under which messages are held.
        prefix: of every key.
        number: tells the channels of a process apart.
        room: how many more messages may run now; None for any number.
        service: what is to be kept to with a queue.
        lists: the keys of the queues' ready lists and their queues, in the order in which they are
            to be served now.
        deliver: takes a message and its queue.
        most_ahead: most messages claimed beyond what may run now.
    """

    def __init__(
        self,
        *,
        connect: Callable[[], Any],
        lease: Lease,
        prefix: str,
        number: int,
        room: Callable[[], int | None],
        service: Callable[[str], Service],
        lists: Callable[[], list[tuple[str, str]]],
        deliver: Callable[[dict[str, Any], str], None],
        most_ahead: int,
    ) -> None:
        self._lease, self._id, self._number = lease, lease.id, number
        self._prefix = prefix
        self._room, self._service, self._lists, self._deliver = room, service, lists, deliver
        self.queues: list[str] = []
        self.closed = False
        self.call_later: Callable[..., Any] | None = None
        self._due = False
        # Claimed and not delivered: what may not run yet, in the order of their claims.
        self._ahead: deque[tuple[str, str, bytes]] = deque()
        self._ahead_since = 0.0
        self._most_ahead, self._limit_ahead = 0, most_ahead
        # What is held of queues with a limit (claim -> queue), and those of which less is held now.
        self._limited: dict[str, str] = {}
        self._freed: list[str] = []
        # Not sent, and sent but not answered.
        self._begun: list[str] = []
        self._done: list[str] = []
        self._unanswered: deque[tuple[list[str], list[str]]] = deque()
        self._lock = threading.RLock()
        self._claiming = False
        self._waiting = False
        self._rings = 0
        self._asked_at = 0.0
        self._full = False
        self._loop_thread = threading.get_ident()
        self._sleeping = False
        self._wake_read, self._wake_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._connect(connect)
        lease.every_beat(self._on_beat)

    def _connect(self, connect: Callable[[], Any]) -> None:
        self._bell, self._pipe = Pipe(connect()), Pipe(connect())
        scripts = [("SCRIPT", "LOAD", script) for script in (CLAIM, SETTLE, PARK)]
        self._claim_sha, self._settle_sha, self._park_sha = self._pipe.ask(*scripts)
        wake = f"{self._prefix}_umbel.wake.{self._id}.{self._number}"
        bell, *_ = self._bell.ask(
            ("CLIENT", "ID"), ("SUBSCRIBE", "__redis__:invalidate"), ("SUBSCRIBE", wake)
        )
        # Of the keys named just after CACHING only: scripts read others, which change all the time.
        self._pipe.ask(("CLIENT", "TRACKING", "ON", "REDIRECT", bell, "OPTIN"))

    def consume(self, queues: Iterable[str]) -> None:
        """Take from these from now on."""
        gone, self.queues = self.queues, list(queues)
        self._leave([queue for queue in gone if queue not in self.queues])
        self._waiting = False
        for claim, queue, element in [*self._ahead]:
            if queue not in self.queues:
                self._ahead.remove((claim, queue, element))
                self.give_back([claim])

    def _leave(self, queues: Sequence[str]) -> None:
        """Pass the watch over these on: who wants nothing has no room."""
        if queues:
            command = self._claim_command(0, [(queue, queue) for queue in queues], {})
            with suppress(redis.RedisError, OSError):  # whoever looks next takes it over
                self._pipe.send([(accepted, command)])

    def one(self, lists: Sequence[tuple[str, str]]) -> dict[str, Any] | None:
        """One message from these, if there is one now; waits for the answer."""
        answers: list[Any] = []
        self._pipe.send([(answers.append, self._claim_command(1, lists, None))])
        while not answers:
            self._pipe.receive()
        if answers[0] is None:
            raise LeaseLost("the lease of this process was lost")
        first, _, _, counts, elements = accepted(answers[0])
        if not elements:
            return None
        [queue] = [queue for (_, queue), count in zip(lists, counts, strict=True) if count]
        claim = f"{self._id}:{int(first)}.{self._number}"
        message = read_element(elements[0], queue, claim)
        message["properties"][CLAIM_PROPERTY] = claim
        return message

    # The event loop's side.

    def descriptors(self) -> dict[int, Callable[[], None]]:
        """What to wait for, and what to call when it is readable."""
        return {
            self._pipe.fileno(): self._pipe.receive,
            self._bell.fileno(): self._rung,
            self._wake_read: self._woken,
        }

    def tick(self) -> None:
        """Before the loop sleeps: deliver what may run, send what is due.

        Raises:
            LeaseLost: what this channel held is not held any more.
        """
        if self._lease.id != self._id:
            raise LeaseLost("the lease of this process was lost")
        self._loop_thread = threading.get_ident()
        self._sleeping = False
        self._go_on()
        self._sleeping = True
        self._go_on()  # what another thread did meanwhile, which saw no need to wake this one

    def _go_on(self) -> None:
        if self._freed:
            self._send_settlements()
        self._deliver_ahead()
        self._claim()
        if self.call_later and self._ahead:
            self._settle_soon(self.call_later)
        else:
            self._send_settlements()

    def _settle_soon(self, call_later: Callable[..., Any]) -> None:
        """While there is work, settle some together: writes to the server cost more than jobs."""
        if (self._done or self._begun) and not self._due:
            self._due = True
            call_later(SETTLE_EVERY_S, self._settle_due)

    def _settle_due(self) -> None:
        self._due = False
        if not self.closed:
            self._send_settlements()

    def _rung(self) -> None:
        self._bell.receive()
        self._rings += 1
        self._waiting = False

    def _woken(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake_read, 512)

    # What comes in.

    def _claim(self) -> None:
        most = self._wanted()
        if most <= 0:
            return
        lists, left = self._lists(), self._left()
        if left:
            lists = [(key, queue) for key, queue in lists if left.get(queue) != 0]
        if not lists:
            return
        self._claiming, self._asked_at = True, monotonic()
        answered = partial(self._claimed, most, lists, self._rings)
        self._pipe.send([(answered, self._claim_command(most, lists, left))])

    def _left(self) -> dict[str, int]:
        """How many more messages may be held, of each queue that has a limit."""
        with self._lock:
            held = Counter(self._limited.values())
        limits = ((queue, self._service(queue).prefetch) for queue in self.queues)
        return {queue: max(0, most - held[queue]) for queue, most in limits if most is not None}

    def _wanted(self) -> int:
        """How many to claim now, if any."""
        now = monotonic()
        if self._claiming or not self.queues:
            return 0
        if self._waiting and now - self._asked_at < self._lease.lease_s / BEATS:
            return 0
        room = self._room()
        if room is None:
            return UNLIMITED
        if len(self._ahead) > self._most_ahead // 2 or not (room or self._most_ahead):
            return 0
        if self._full:
            self._adapt(now - self._asked_at)
        return room + self._most_ahead - len(self._ahead)

    def _adapt(self, used_up_s: float) -> None:
        """Claim more ahead while a claim is used up within moments, and less where it lasts."""
        if used_up_s < AHEAD_S:
            self._most_ahead = min(self._limit_ahead, max(4, 2 * self._most_ahead))
        elif used_up_s > 2 * AHEAD_S:
            self._most_ahead //= 2

    def _claim_command(
        self, most: int, lists: Sequence[tuple[str, str]], left: Mapping[str, int] | None
    ) -> Command:
        """Args: as for `Claims`, and how many may be taken of a queue; None to watch none."""
        queues = [] if left is None else list(dict.fromkeys(queue for _, queue in lists))
        place = {queue: number for number, queue in enumerate(queues, 1)}
        base = f"{self._prefix}_umbel."
        keys = [
            self._lease.consumers_key,
            self._lease.claims_key(self._id),
            f"{base}fence",
            f"{base}watchers",
            *(f"{base}waiting.{queue}" for queue in queues),
            *map(self._lock_key, queues),
            *(key for key, _ in lists),
        ]
        arguments = [self._id, self._number, most, f"{base}wake.", len(queues)]
        for queue in queues:
            in_order = self._service(queue).in_order
            arguments += [queue, (left or {}).get(queue, ""), int(in_order)]
        arguments += [place.get(queue, 0) for _, queue in lists]
        return ("EVALSHA", self._claim_sha, len(keys), *keys, *arguments)

    def _lock_key(self, queue: str) -> str:
        return f"{self._prefix}_umbel.lock.{queue}"

    def _claimed(
        self, most: int, lists: Sequence[tuple[str, str]], rings: int, answer: Any
    ) -> None:
        self._claiming = False
        if answer is None:
            raise LeaseLost("the lease of this process was lost")
        first, watch, locked, counts, elements = accepted(answer)
        queues = [
            queue for (_, queue), count in zip(lists, counts, strict=True) for _ in range(count)
        ]
        claims = [f"{self._id}:{int(first) + n}.{self._number}" for n in range(len(elements))]
        with self._lock:
            self._ahead_since = monotonic()
            self._ahead.extend(zip(claims, queues, elements, strict=True))
            self._limited |= {
                claim: queue
                for claim, queue in zip(claims, queues, strict=True)
                if self._service(queue).prefetch is not None
            }
        self._full = len(elements) == most
        if not self._full:
            self._most_ahead = 0
        # There may be more, or the bell has rung meanwhile, perhaps after the server had answered.
        self._waiting = not self._full and rings == self._rings
        if watch:
            ready = [queue.decode() for queue in watch if queue not in locked]
            self._watch([key for key, queue in lists if queue in ready], wait_for=1)
        for queue in locked:
            self._watch([self._lock_key(queue.decode())], wait_for=0)
        self._deliver_ahead()

    def _watch(self, keys: list[str], wait_for: int) -> None:
        """Be told once when one of these changes; look again if what is waited for is there.

        Args:
            keys: ready lists, or a lock.
            wait_for: 1 if it is for one of them to be there, 0 for none.
        """

        def answered(there: Any) -> None:
            if min(1, accepted(there)) == wait_for:
                self._waiting = False

        if keys:
            self._pipe.send(
                [(accepted, ("CLIENT", "CACHING", "YES")), (answered, ("EXISTS", *keys))]
            )

    def _deliver_ahead(self) -> None:
        while self._ahead and self._room() != 0:
            with self._lock:
                if not self._ahead:  # another thread has given them back
                    return
                claim, queue, element = self._ahead.popleft()
            message = read_element(element, queue, claim)
            eta = (message["headers"] or {}).get("eta")
            if eta and (wait_s := seconds_until(eta)) > 0:
                self._park(claim, message, wait_s)
            else:
                message["properties"][CLAIM_PROPERTY] = claim
                self._deliver(message, queue)
            self._claim()

    def _park(self, claim: str, message: dict[str, Any], wait_s: float) -> None:
        """Its time has not come: it waits on the server, and for any worker."""
        keys = [self._lease.claims_key(self._id), self._lease.delayed_key]
        wait_ms = math.ceil(wait_s * 1000)
        arguments = [claim.partition(":")[2], wait_ms, in_time(message)]
        self._pipe.send([(accepted, ("EVALSHA", self._park_sha, len(keys), *keys, *arguments))])
        self._lease.due_in(wait_s)
        with self._lock:
            self._free(claim)

    def _on_beat(self) -> None:
        """Called by the lease's thread: what a loop that is kept busy by a job does not come to."""
        with suppress(redis.RedisError, OSError):  # the loop will see it too
            self._send_settlements()
        if self._ahead and monotonic() - self._ahead_since > STALE_S:
            with self._lock:
                stale = [claim for claim, _, _ in self._ahead]
                self._ahead.clear()
                self._most_ahead = 0
            self.give_back(stale)

    # What goes out.

    def begun(self, claim: str, *, at_once: bool) -> None:
        """Its job begins: from here on it counts as a run. Safe in threads; never waits.

        Args:
            claim: of the message.
            at_once: the process may not survive it, so the server is told before; else soon.
        """
        with self._lock:
            if self.closed:
                self._lease.settle((), [claim])
                return
            self._begun.append(claim)
        if not at_once:
            self._lease.look_soon()  # the loop may be kept busy by this very job
        else:
            with suppress(redis.RedisError, OSError):  # the loop will see it too
                self._send_settlements()

    def give_back(self, claims: Sequence[str]) -> None:
        """These go back to their queues. Safe in threads; never waits."""
        with self._lock:
            for claim in claims:
                self._free(claim)
        self._lease.give_back(claims)

    def flush(self) -> None:
        """Send what is settled now. Safe in threads; never waits."""
        self._send_settlements()

    def _free(self, claim: str) -> None:
        if queue := self._limited.pop(claim, None):
            self._freed.append(queue)

    def settle(self, claim: str) -> None:
        """It is done with. Safe in threads; never waits."""
        with self._lock:
            if self.closed:
                self._lease.settle([claim])
                return
            self._done.append(claim)
            self._free(claim)
        if self._sleeping and threading.get_ident() != self._loop_thread:
            os.write(self._wake_write, b"!")

    def _send_settlements(self) -> None:
        if not (self._done or self._begun or self._freed):
            return
        with self._lock:
            begun, self._begun = self._begun, []
            done, self._done = self._done, []
            freed, self._freed = self._freed, []
            if done:
                over = set(done)
                begun = [claim for claim in begun if claim not in over]
            if not (done or begun or freed):
                return
            if freed:
                self._waiting = False
            self._unanswered.append((begun, done))
            names = [claim.partition(":")[2] for claim in (*begun, *done)]
            keys = [self._lease.claims_key(self._id), self._lease.begun_key(self._id)]
            keys += [self._lock_key(queue) for queue in freed if self._service(queue).in_order]
            command = ("EVALSHA", self._settle_sha, len(keys), *keys, len(begun), *names)
            self._pipe.send([(self._settled, command)])

    def _settled(self, answer: Any) -> None:
        missing = accepted(answer)
        _, done = self._unanswered.popleft()
        if missing:
            logger.warning(
                "%d of %d acknowledgements refused: others have the messages",
                *(missing, len(done)),
                extra={"action": "ack_refused", "messages": missing},
            )

    def close(self, keep: Iterable[str]) -> None:
        """What has not begun goes back; `keep` has, and goes on under the lease."""
        self._lease.forget(self._on_beat)
        with self._lock:
            self.closed = True
            for begun, done in (*self._unanswered, (self._begun, self._done)):
                self._lease.settle(done, begun)
            self._ahead.clear()
        self._leave(self.queues)
        self._lease.abandon(self._number, keep)
        for pipe in (self._pipe, self._bell):
            pipe.close()
        for descriptor in (self._wake_read, self._wake_write):
            os.close(descriptor)

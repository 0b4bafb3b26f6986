"""Reading ahead: between two short jobs no worker waits for the server.

What a consumer may hold is settled when it begins, and for quorum queues there is no other bound
(RabbitMQ, Consumer Prefetch). So one queue has several consumers here, which hold together as many
messages as may run, and while jobs are short some more. What was read ahead and is not begun soon
goes back: all consumers end, and others begin as places become free, for what still runs is in no
bound any more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from itertools import count
from time import monotonic
from typing import Any

import amqp

MOST_AHEAD = 32
"""Messages of a queue that are read ahead."""
BURST_S = 0.1
"""Time within which so many have to be done before any are."""
STALE_S = 0.5
"""Time after which what was read ahead and is not begun goes back."""
QUIET_S = 1.0
"""Time after which nothing is read ahead any more, unless so many were done again."""


class Ahead:
    """The consumers of one queue.

    Args:
        channel: theirs.
        tag: of the one consumer that they stand for.
        places: how many messages may run at a time.
        loop: the worker's event loop; all happens in its thread.
        begin: begins a consumer, with a tag, a bound and options of `basic_consume`.
        take: called with each message when its turn has come.
    """

    def __init__(
        self,
        channel: Any,
        tag: str,
        places: int,
        *,
        loop: Any,
        begin: Callable[..., Any],
        take: Callable[[amqp.Message], Any],
    ) -> None:
        self._channel, self._places, self._loop = channel, places, loop
        self._begin, self._take = begin, take
        self._tags = (f"{tag}.{number}" for number in count(1))
        self._bounds: dict[str, int] = {}
        self._held: deque[tuple[float, amqp.Message]] = deque()
        self._running: dict[int, str] = {}
        self._is_fast = self._is_over = False
        self._done, self._burst_at = 0, monotonic()

    def refill(self) -> None:
        """Ask for as many as may be held and are not."""
        if self._is_over or not self._channel.connection:
            return
        unbound = sum(tag not in self._bounds for tag in self._running.values())
        most = self._places + MOST_AHEAD * self._is_fast
        if (more := most - unbound - sum(self._bounds.values())) > 0:
            tag = next(self._tags)
            self._bounds[tag] = more
            self._begin(tag, more, nowait=True, callback=self.received)

    def received(self, message: amqp.Message) -> None:
        """It comes to its turn now or later."""
        self._held.append((monotonic(), message))
        self._hand_over()

    def _hand_over(self) -> None:
        while self._held and len(self._running) < self._places and self._channel.is_heard():
            _, message = self._held.popleft()
            self._running[message.delivery_tag] = message.delivery_info["consumer_tag"]
            self._take(message)

    def settled(self, delivery_tag: int) -> None:
        """A message is settled; if it ran here, its place is free."""
        if not (tag := self._running.pop(delivery_tag, "")):
            return
        self._loop.call_soon(self._hand_over)  # what goes wrong there is not about this one
        if tag not in self._bounds and not self._is_fast:
            self._loop.call_soon(self.refill)
        self._done += 1
        if self._done == MOST_AHEAD:
            self._measure()

    def _measure(self) -> None:
        now = monotonic()
        is_burst = now - self._burst_at < BURST_S
        self._done, self._burst_at = 0, now
        if is_burst and not self._is_fast:
            self._is_fast = True
            self._loop.call_soon(self.refill)
            self._loop.call_later(STALE_S / 2, self._look)

    def _look(self) -> None:
        now = monotonic()
        is_stale = bool(self._held) and now - self._held[0][0] > STALE_S
        if is_stale or now - self._burst_at > QUIET_S:
            self._loop.call_soon(self._slow_down)
        else:
            self._loop.call_later(STALE_S / 2, self._look)

    def _slow_down(self) -> None:
        self._is_fast = False
        self._give_back()
        self.refill()

    def end(self) -> None:
        """Consume no more; what runs goes on."""
        self._is_over = True
        self._give_back()

    def _give_back(self) -> None:
        if not self._channel.connection:
            return  # the server has it all
        ended = [*self._bounds]
        for tag in ended:
            self._channel.basic_cancel(tag)
            del self._bounds[tag]
        while self._held:
            _, message = self._held.popleft()
            self._channel.basic_reject(message.delivery_tag, requeue=True)
        for tag in ended:
            del self._channel.queues[tag]

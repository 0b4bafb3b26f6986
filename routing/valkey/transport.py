"""Kombu's Redis transport with our channel."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

from kombu.transport import redis as kombu_redis

from umbel.routing.valkey.channel import Channel, SentinelChannel

logger = logging.getLogger("umbel.delivery")


LOOK_EVERY_S = 0.05
"""How often the subscriptions are looked at, whether one was lost."""


class Poller(kombu_redis.MultiChannelPoller):
    """Waits for what the claims' connections bring, beside what Kombu waits for."""

    def __init__(self) -> None:
        super().__init__()
        self._readable: dict[int, Callable[[], None]] = {}
        self._claiming: dict[Any, list[int]] = {}
        self._look_at = 0.0
        self._told: dict[int, Any] = {}
        self.call_later: Callable[..., Any] | None = None

    def on_poll_start(self) -> None:
        """Before each wait; Kombu's part only where it may have something to do."""
        popping = False
        for channel in self._channels:
            popping = popping or bool(channel.active_queues)
            claims = channel._claims
            if claims is not None and not claims.closed:
                if channel not in self._claiming:
                    self._add_claims(channel, claims)
                claims.tick()
        now = monotonic()
        if popping or now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            super().on_poll_start()

    def _add_claims(self, channel: Any, claims: Any) -> None:
        claims.call_later = self.call_later
        descriptors = claims.descriptors()
        self._claiming[channel] = list(descriptors)
        self._readable.update(descriptors)
        for descriptor in descriptors:
            self.poller.register(descriptor, self.eventflags)

    def remove_claims(self, channel: Any) -> None:
        """Before a channel closes them: a descriptor's number may be another's after."""
        for descriptor in self._claiming.pop(channel, ()):
            del self._readable[descriptor]
            with suppress(KeyError, ValueError, OSError):
                self._unregister_from_poll(descriptor)

    def handle_event(self, fileno: int, event: int) -> Any:
        """Called without an event loop."""
        if fileno in self._readable:
            return self.on_readable(fileno), self
        return super().handle_event(fileno, event)

    def on_readable(self, fileno: int) -> Any:
        """Called with an event loop."""
        if receive := self._readable.get(fileno):
            return receive()
        return super().on_readable(fileno)

    @property
    def fds(self) -> dict[int, Any]:
        """What an event loop has to wait for; it is asked for at every turn, and told what is new.

        A number may be given away and come back in between: what stands behind it tells.
        """
        now = self._fd_to_chan | self._readable
        for paused in self._paused_brpop:
            del now[paused]
        known, self._told = self._told, now
        return {fd: waits for fd, waits in now.items() if known.get(fd) is not waits}

    def maybe_restore_messages(self) -> None:
        """What plain workers that died left in flight; their own rule: the visibility timeout."""
        for channel in self._channels:
            if channel._claims is not None:
                try:
                    channel.qos.restore_visible(
                        num=channel.unacked_restore_limit,
                        interval=channel.unacked_restore_throttle,
                    )
                except channel.connection_errors:
                    logger.debug("no sweep of plain workers' messages", exc_info=True)
                return


class Leased:
    """A transport whose messages are held by a lease, not by a connection."""

    acks_at_once = True
    cycle: Any

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.cycle = Poller()

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Called by Celery's worker before it consumes."""
        self.cycle.call_later = loop.call_later
        super().register_with_event_loop(connection, loop)  # type: ignore[misc]


class Transport(Leased, kombu_redis.Transport):
    """For a server by its address."""

    Channel = Channel


class SentinelTransport(Leased, kombu_redis.SentinelTransport):
    """For the primary that Sentinels name."""

    Channel = SentinelChannel

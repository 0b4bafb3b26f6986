"""Following what the store knows: who writes it publishes on a channel of the key's name."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from time import monotonic
from typing import TypeVar

from umbel.config.store import Store

T = TypeVar("T")


def watch(
    store: Store,
    key: str,
    read: Callable[[], T],
    over: Callable[[T], bool],
    timeout_s: float | None = None,
) -> Iterator[T]:
    """What is there now and at each change, up to its end or until the time is over.

    Args:
        store: where it is.
        key: of what is followed.
        read: what is there now.
        over: whether that is its end.
        timeout_s: longest time to wait, in seconds; None waits for ever.
    """
    deadline = None if timeout_s is None else monotonic() + timeout_s
    with store.client.pubsub(ignore_subscribe_messages=True) as changes:
        changes.subscribe(key)
        known = None
        while True:
            now = read()
            if now != known:
                yield (known := now)
            if over(now) or (deadline and monotonic() >= deadline):
                return
            changes.get_message(timeout=_wait_s(deadline))


async def awatch(
    store: Store,
    key: str,
    read: Callable[[], Awaitable[T]],
    over: Callable[[T], bool],
    timeout_s: float | None = None,
) -> AsyncIterator[T]:
    """The same, without blocking the event loop."""
    deadline = None if timeout_s is None else monotonic() + timeout_s
    client = await store.async_client()
    async with client.pubsub(ignore_subscribe_messages=True) as changes:
        await changes.subscribe(key)
        known = None
        while True:
            now = await read()
            if now != known:
                yield (known := now)
            if over(now) or (deadline and monotonic() >= deadline):
                return
            await changes.get_message(timeout=_wait_s(deadline))


def _wait_s(deadline: float | None) -> float:
    """Up to a change; a look every few seconds besides, since a subscription may break unseen."""
    longest_s = 5.0
    return longest_s if deadline is None else max(0.0, min(longest_s, deadline - monotonic()))

"""A look at what waits on the server; nothing is taken, and nothing changes its place."""

from __future__ import annotations

from typing import Any

from umbel.routing.valkey.elements import read_element
from umbel.routing.valkey.scripts import DELAYED, split_claim

# KEYS: a ready list. ARGV: most elements. Returns its length, then those that are taken next.
_LIST = "return {redis.call('LLEN', KEYS[1]), redis.call('LRANGE', KEYS[1], -ARGV[1], -1)}"
# KEYS: delayed. ARGV: most elements. Returns how many there are, then those that are due next.
_SET = "return {redis.call('ZCARD', KEYS[1]), redis.call('ZRANGE', KEYS[1], 0, ARGV[1] - 1)}"


def waiting(channel: Any, queue: str, most: int) -> tuple[int, list[Any]]:
    """How many messages wait in a queue, and those of them that are taken next.

    Args:
        channel: of this transport.
        queue: its name.
        most: how many to look at, at each of Kombu's priorities.
    """
    total, found = 0, []
    for priority in channel.priority_steps:
        count, elements = _ask(channel, _LIST, channel._q_for_pri(queue, priority), most)
        total += count
        found += [_message(channel, element, queue) for element in reversed(elements)]
    return total, found


def delayed(channel: Any, most: int) -> list[tuple[str, Any]]:
    """The messages that are due next, of all apps on the server, with their queues' names."""
    _, parked = _ask(channel, _SET, DELAYED, most)
    found = []
    for one in parked:
        key, element = split_claim(one.partition(b" ")[2])
        queue = key.removeprefix(channel.global_keyprefix).partition(channel.sep)[0]
        found.append((queue, _message(channel, element, queue)))
    return found


def _ask(channel: Any, script: str, key: str, most: int) -> tuple[int, list[bytes]]:
    with channel.conn_or_acquire() as client:
        key = channel.global_keyprefix + key
        count, elements = client.execute_command("EVAL", script, 1, key, most)
    return count, elements


def _message(channel: Any, element: bytes, queue: str) -> Any:
    return channel.Message(read_element(element, queue), channel=channel)

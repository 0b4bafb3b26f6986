"""Runs begun that ended without an outcome: RabbitMQ counts deliveries, also of what never ran.

A mark in the state store stands for each run of some length. It goes when the message is settled,
and stays when the process dies: the next worker reads it and counts. Short runs, most of all, cost
nothing: they are over before their mark is due.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import Any

import redis

from umbel.routing.valkey import DELIVERIES_HEADER

logger = logging.getLogger("umbel.delivery")

MARK_AFTER_S = 0.1
"""Length of a run that is marked; one of a message that came back is marked at once."""

_KEPT_S = 30 * 24 * 3600


@dataclass
class _Run:
    due_at: float
    marked: bool = False


class Runs:
    """The runs of this process.

    Args:
        store: a client of the state store.
        namespace: prefix of every key.
    """

    def __init__(self, store: redis.Redis, namespace: str) -> None:
        self._store = store
        self._namespace = namespace
        self._runs: dict[str, _Run] = {}
        self._orders: list[tuple[str, str]] = []
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._asleep = False
        self._process = os.getpid()
        atexit.register(self.end)

    def key(self, headers: Mapping[str, Any], own_id: Callable[[], str] = str) -> str:
        """Of one copy of a message: each retry, return and run after a crash is another.

        Args:
            headers: its own.
            own_id: names one that has no id among them.
        """
        parts = [headers.get(name) or 0 for name in ("retries", DELIVERIES_HEADER, "umbel-returns")]
        copy = ".".join(str(part) for part in (headers.get("id") or own_id(), *parts))
        return f"{self._namespace}:begun:{copy}"

    def lost(self, key: str) -> int:
        """How many runs of a message ended without an outcome, since its last copy was made.

        A store that does not answer counts as none: better one run too many than a job not done.
        """
        try:
            return int(self._store.get(key) or 0)
        except redis.RedisError as error:
            logger.warning("runs without an outcome are not counted now: %r", error)
            return 0

    def begin(self, key: str, *, came_back: bool) -> None:
        """A run begins; never waits."""
        with self._changed:
            self._runs[key] = _Run(monotonic() + (0 if came_back else MARK_AFTER_S))
            self._start()
            if came_back or self._asleep:
                self._changed.notify()

    def settled(self, key: str, *, came_back: bool) -> None:
        """It has an outcome; so have those before it."""
        self._end(key, "DEL", always=came_back)

    def called_off(self, key: str) -> None:
        """It ended without an outcome, and through no fault of its own: the connection was lost."""
        self._end(key, "DECR", always=False)

    def end(self) -> None:
        """The process ends in good order: what still runs here is called off."""
        if self._process != os.getpid():
            return
        for key in list(self._runs):
            self.called_off(key)
        self.flush()

    def flush(self) -> None:
        """Write what is due."""
        with self._changed:
            now = monotonic()
            due = [key for key, run in self._runs.items() if not run.marked and run.due_at <= now]
            for key in due:
                self._runs[key].marked = True
            orders, self._orders = self._orders + [(key, "INCR") for key in due], []
        if orders:
            self._write(orders)

    def _end(self, key: str, order: str, *, always: bool) -> None:
        with self._changed:
            run = self._runs.pop(key, None)
            if always or (run and run.marked):
                self._orders.append((key, order))

    def _write(self, orders: list[tuple[str, str]]) -> None:
        try:
            with self._store.pipeline(transaction=False) as together:
                for key, order in orders:
                    together.execute_command(order, key)
                    together.expire(key, _KEPT_S)
                together.execute()
        except redis.RedisError as error:
            logger.warning("runs that began are not marked: %r", error)

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="umbel-runs", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._asleep = not (self._runs or self._orders)
                self._changed.wait(None if self._asleep else MARK_AFTER_S)
                self._asleep = False
            self.flush()

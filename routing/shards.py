"""How many shards a queue has, as all of its producers and consumers must agree on."""

from __future__ import annotations

from time import monotonic

from umbel.config.errors import ShardsChanged
from umbel.config.store import Store
from umbel.routing.queues import WorkQueue

LOOK_EVERY_S = 5.0
"""How long a producer goes by what it has seen."""


class ShardMaps:
    """What is known of one app's queues; who comes first says how it is.

    Args:
        store: where it is kept.
        namespace: the app's prefix of every key.
    """

    def __init__(self, store: Store, namespace: str) -> None:
        self._store = store
        self._key = f"{namespace}:shards"
        self._looked: dict[str, float] = {}

    def check(self, queue: WorkQueue) -> None:
        """Whether this program's number of shards is the one in use.

        Raises:
            ShardsChanged: it is another: a key's messages would go to two shards.
        """
        if monotonic() < self._looked.get(queue.name, 0) + LOOK_EVERY_S:
            return
        shards = self.read(queue)
        if shards != queue.shards:
            raise ShardsChanged(
                f"queue {queue.name!r} has {shards} shards, and this program was written for "
                f"{queue.shards}: start it with the other number, or change the number in use with "
                f"app.reshard({queue.name!r}) while nobody sends or consumes"
            )
        self._looked[queue.name] = monotonic()

    def read(self, queue: WorkQueue) -> int:
        """The number in use."""
        with self._store.client.pipeline() as together:
            together.hsetnx(self._key, queue.name, str(queue.shards))
            together.hget(self._key, queue.name)
            return int(together.execute()[1])

    def known(self, queue: WorkQueue) -> int | None:
        """The number in use; None before somebody has come."""
        number = self._store.client.hget(self._key, queue.name)
        return int(number) if number else None

    def write(self, queue: WorkQueue) -> None:
        """From now on it is this program's."""
        self._store.client.hset(self._key, queue.name, str(queue.shards))

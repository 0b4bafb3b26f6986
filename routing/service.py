"""How a queue is to be served, as far as the broker does not know it by itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Service:
    """What a consumer has to keep to with one queue.

    Attributes:
        family: the work queue that it is a part of: its parts are served in their order, families
            in turn.
        prefetch: most messages of it that one consumer holds; None for as many as it may at all.
        in_order: whether only one message of it is in flight at a time, with whomever.
    """

    family: str
    prefetch: int | None = None
    in_order: bool = False

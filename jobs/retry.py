"""When a failed job is run again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Retry:
    """A retry policy: first some runs at once, then some after a pause each.

    Attributes:
        immediate: how many retries follow at once.
        delays_s: the pauses before the further ones, in seconds, 0 or more each.
        give_up_on: exceptions that no repetition mends; they go to the dead letters at once.

    Raises:
        ValueError: a number is negative.
    """

    immediate: int = 0
    delays_s: Sequence[float] = ()
    give_up_on: tuple[type[Exception], ...] = ()

    def __post_init__(self) -> None:
        if self.immediate < 0 or any(delay_s < 0 for delay_s in self.delays_s):
            raise ValueError(f"{self}: retries and pauses are 0 or more")

    def delay_s(self, error: BaseException, attempt: int) -> float | None:
        """The pause before the next run, or None when there is none.

        Args:
            error: what the run raised.
            attempt: which run that was, from 1.

        >>> policy = Retry(immediate=1, delays_s=[10, 60], give_up_on=(KeyError,))
        >>> [policy.delay_s(ValueError(), attempt) for attempt in (1, 2, 3, 4)]
        [0.0, 10.0, 60.0, None]
        >>> policy.delay_s(KeyError(), 1) is None
        True
        """
        if isinstance(error, self.give_up_on):
            return None
        delays_s = [0.0] * self.immediate + [float(delay_s) for delay_s in self.delays_s]
        return delays_s[attempt - 1] if attempt <= len(delays_s) else None

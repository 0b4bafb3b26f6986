"""Times in messages."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any


def seconds_until(eta: Any) -> float:
    """From now to a time in ISO 8601; 0 for none, and for what is no time in UTC.

    >>> seconds_until(None), seconds_until("never")
    (0.0, 0.0)
    """
    try:
        time = datetime.fromisoformat(eta)
        time = (time if time.tzinfo else time.replace(tzinfo=UTC)).astimezone(UTC)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    return (time - datetime.now(UTC)).total_seconds()

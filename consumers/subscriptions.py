"""An event in a subscriber's queue becomes that subscriber's job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from umbel.jobs.subscription import Subscription
from umbel.jobs.wire import CAUSATION_ID, EVENT_ID


def address(message: Any, subscriptions: Mapping[str, Subscription]) -> None:
    """Give an event the name and the id of its handling; anything else stays as it is.

    A copy of the handling (a retry, a message that came back) has them already.

    Args:
        message: Kombu's.
        subscriptions: by their queues' names.
    """
    subscription = subscriptions.get(str((message.delivery_info or {}).get("routing_key")))
    headers = message.headers
    if subscription is None or not isinstance(headers, dict):
        return
    event_id = headers.get(EVENT_ID)
    if not isinstance(event_id, str) or headers.get("task") == subscription.name:
        return
    headers.update(
        {
            "task": subscription.name,
            "id": subscription.handling_id(event_id),
            "root_id": headers.get("root_id") or event_id,
            "parent_id": event_id,
            CAUSATION_ID: event_id,
        }
    )

"""The elements of the ready lists: Kombu's messages as JSON, or whatever a stranger put there."""

from __future__ import annotations

import base64
import binascii
from typing import Any
from uuid import uuid4

from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps

from umbel.routing.json import loads

RAW_HEADER = "umbel-raw"
"""Set on the delivery of an element that was no Kombu message; its body is the element."""

DELIVERIES_HEADER = "umbel-deliveries"
"""Runs begun that ended without an outcome, since the last retry."""


def read_element(element: bytes, queue: str, tag: str | None = None) -> dict[str, Any]:
    """A list's element as a Kombu message; what is none becomes the body of a raw one.

    Args:
        element: as it was taken.
        queue: where.
        tag: names the delivery; that of a raw one.
    """
    return _kombu_message(element) or _raw_delivery(element, queue, tag or str(uuid4()))


def come_back(element: bytes, runs: int, queue: str, tag: str) -> bytes:
    """The element of a message whose worker is gone.

    Args:
        element: as it was taken; what is no Kombu message becomes one when its runs are counted.
        runs: that began and ended without an outcome: 1 or 0.
        queue: where it was taken.
        tag: names that delivery, and from now on a message that had no tag of its own.
    """
    message = _kombu_message(element)
    if message is None and not runs:
        return element
    message = message or _raw_delivery(element, queue, tag)
    if runs:
        headers = message["headers"] = dict(message.get("headers") or {})
        known = headers.get(DELIVERIES_HEADER)
        headers[DELIVERIES_HEADER] = runs + (known if type(known) is int and known > 0 else 0)
    message["properties"]["delivery_info"]["redelivered"] = True
    return _element(message)


def in_time(message: dict[str, Any]) -> bytes:
    """The element of a message that will come at its time: Celery is not to wait for that again."""
    return _element({**message, "headers": {**message["headers"], "eta": None}})


def _element(message: dict[str, Any]) -> bytes:
    text: str = dumps(message)
    return text.encode("utf-8", "surrogatepass")


def _kombu_message(element: bytes) -> dict[str, Any] | None:
    try:
        message = loads(bytes_to_str(element))
    except (ValueError, RecursionError):
        return None
    return message if _is_kombu_message(message) else None


def _raw_delivery(element: bytes, queue: str, tag: str) -> dict[str, Any]:
    """A Kombu message around bytes that came without one."""
    return {
        "body": base64.b64encode(element).decode(),
        "content-type": "application/octet-stream",
        "content-encoding": "binary",
        "headers": {RAW_HEADER: True},
        "properties": {
            "body_encoding": "base64",
            "delivery_mode": 2,
            "delivery_tag": tag,
            "delivery_info": {"exchange": "", "routing_key": queue},
        },
    }


def _is_kombu_message(message: Any) -> bool:
    """Whether there is all that Kombu relies on to read it and to find its way back."""
    if not isinstance(message, dict) or not isinstance(message.get("properties"), dict):
        return False
    properties, headers = message["properties"], message.get("headers")
    info = properties.get("delivery_info")
    return (
        isinstance(properties.get("delivery_tag"), str)
        and isinstance(info, dict)
        and isinstance(info.get("exchange"), str)
        and isinstance(info.get("routing_key"), str)
        and isinstance(properties.get("priority", 0), int)
        and (headers is None or isinstance(headers, dict))
        and _is_text_or_none(message.get("content-type"))
        and _is_text_or_none(message.get("content-encoding"))
        and _has_readable_body(message.get("body"), properties.get("body_encoding"))
    )


def _is_text_or_none(value: Any) -> bool:
    return value is None or isinstance(value, str)


def _has_readable_body(body: Any, encoding: Any) -> bool:
    if not isinstance(body, str):
        return False
    if encoding is None:
        return True
    if encoding != "base64":
        return False
    try:
        binascii.a2b_base64(body)
    except ValueError:
        return False
    return True

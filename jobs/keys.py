"""Keys of messages: what tells which of them belong together."""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from typing import Any

from umbel.config.errors import ContractError
from umbel.jobs.contracts import Event, Message

Key = str | Callable[[Any], object]
"""The name of a field, or a function of the message. The key is the text of what it gives."""


def checked_key(which: str, key: Key | None, contract: type[Message]) -> Any:
    """The key as an attribute of a class, if messages of the contract can have it.

    Args:
        which: the option's name, for the error.
        key: as it was given.
        contract: the messages'; of a subscriber of several events any of them may have the field.

    Raises:
        TypeError: there is no such field.
    """
    if isinstance(key, str) and contract is not Event and key not in contract.model_fields:
        fields = ", ".join(contract.model_fields)
        raise TypeError(f"{which}={key!r}: {contract.__name__} has no such field; it has: {fields}")
    return staticmethod(key) if callable(key) else key


def key_of(which: str, key: Key, message: Message) -> str:
    """The key of one message.

    Raises:
        ContractError: it has none.
    """
    try:
        value = getattr(message, key) if isinstance(key, str) else key(message)
    except Exception as error:
        problem = f"{which}= failed: {type(error).__name__}: {error}"
        raise ContractError(message.contract_name, [problem]) from error
    if value is None or value == "":
        raise ContractError(message.contract_name, [f"{which}= gives {value!r}; a key is wanted"])
    return str(value.value if isinstance(value, Enum) else value)

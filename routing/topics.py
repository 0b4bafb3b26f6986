"""The way of events: one exchange for an app, and a queue for each subscriber.

Patterns are AMQP's: words joined by dots, ``*`` for one word, ``#`` for any number, none included.
"""

from __future__ import annotations

import re

from kombu.entity import Exchange

_SUFFIX = ".topics"
_PATTERN = re.compile(r"(\*|#|[a-z0-9][a-z0-9_-]*)(\.(\*|#|[a-z0-9][a-z0-9_-]*))*")


def topics(namespace: str) -> Exchange:
    """The exchange that an app's events go to."""
    return Exchange(namespace + _SUFFIX, type="topic", durable=True)


def is_topics(exchange: str) -> bool:
    """Whether this is the name of such an exchange."""
    return exchange.endswith(_SUFFIX)


def checked_pattern(pattern: str) -> str:
    """The pattern, if it is one.

    Raises:
        ValueError: it is none.
    """
    if not _PATTERN.fullmatch(pattern):
        raise ValueError(
            f"{pattern!r} is no pattern of event names; expected lower case words joined by dots, "
            "with '*' for one word and '#' for any number of them: 'image.*'"
        )
    return pattern


def regex_of(pattern: str) -> str:
    """What a pattern matches, as a regular expression of names.

    >>> [bool(re.match(regex_of("image.#"), name)) for name in ("image", "image.a.b", "images")]
    [True, True, False]
    """
    end = r"(?:\.|$)"
    wild = {"*": f"[^.]+{end}", "#": f"(?:[^.]+{end})*"}
    words = (wild.get(word) or re.escape(word) + end for word in pattern.split("."))
    return f"^{''.join(words)}$"

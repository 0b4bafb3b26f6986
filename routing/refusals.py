"""What a broker says no to."""

from __future__ import annotations

from kombu.exceptions import OperationalError


class Refused(OperationalError):
    """The server was there and did not take the message; says why.

    Attributes:
        taken: how many of several messages it has for sure, from the first on.
    """

    taken = 0

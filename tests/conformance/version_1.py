"""A service as it was."""

from __future__ import annotations

from marks import mark

from umbel import Message, Umbel

app = Umbel("versions", lease_s=2)


class Greet(Message, name="versions.greet", version=1):
    """With one name."""

    case: str
    name: str


@app.job
def greet(message: Greet) -> None:
    """Notes who did it."""
    mark(message.case, "greet", name=message.name, by=1)

"""The same service with the next version of its contract."""

from __future__ import annotations

from marks import mark

from umbel import Message, Umbel, upcast

app = Umbel("versions", lease_s=2)


class GreetV1(Message, name="versions.greet", version=1):
    """With one name."""

    case: str
    name: str


class Greet(Message, name="versions.greet", version=2):
    """With several."""

    case: str
    names: list[str]


@upcast(GreetV1, to=Greet)
def several(old: GreetV1) -> Greet:
    """Carried forward."""
    return Greet(case=old.case, names=[old.name])


@app.job
def greet(message: Greet) -> None:
    """Notes who did it."""
    for name in message.names:
        mark(message.case, "greet", name=name, by=2)

"""A drawer in place of a producer: messages as they would go out, kept to be sent later."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from celery.app.amqp import task_message
from kombu.utils.json import dumps

_KEPT = ("correlation_id", "reply_to", "priority")


@dataclass(frozen=True)
class Letter:
    """A message that waits to be sent, final: whoever sends it changes nothing.

    Attributes:
        id: its job's or event's id.
        name: of its job or event.
        queue: where it goes; None for an event, which goes to all who have subscribed.
        headers: Celery's and ours.
        properties: of the message, those that every broker has.
        body: JSON, Celery's protocol 2.
    """

    id: str
    name: str
    queue: str | None
    headers: dict[str, Any]
    properties: dict[str, Any]
    body: bytes

    def message(self, *, tell: bool) -> task_message:
        """As Celery sends one.

        Args:
            tell: whether Flower is to learn of the sending.
        """
        content = {"content_type": "application/json", "content_encoding": "utf-8"}
        properties = {**self.properties, **content}
        sent = self.sent if tell else None
        return task_message(dict(self.headers), properties, self.body, sent)

    @property
    def sent(self) -> dict[str, Any]:
        """What Flower learns of the sending."""
        return told(self.id, self.name, self.headers)


def told(job_id: str, name: str, headers: Mapping[str, Any]) -> dict[str, Any]:
    """What Flower learns of a sending, as Celery has it in its `task-sent` events."""
    same = ("root_id", "parent_id", "retries", "eta", "expires")
    return {
        "uuid": job_id,
        "name": name,
        "args": headers.get("argsrepr"),
        "kwargs": headers.get("kwargsrepr"),
        **{field: headers.get(field) for field in same},
    }


class Drawer:
    """Given to Celery as the producer; `umbel.routing.celery.AMQP` puts its messages in here.

    Attributes:
        letters: in the order in which they were sent.
    """

    def __init__(self) -> None:
        self.letters: list[Letter] = []

    def keep(self, name: str, message: Any, options: Mapping[str, Any]) -> None:
        """Called with what Celery's sender is called with.

        The expiry of the message itself is left out: `expires` in the headers says it, and the
        worker that drops it keeps the record.
        """
        headers, properties, body, _ = message
        headers = {**headers, **(options.get("headers") or {})}
        known = {**properties, **options}
        queue = options.get("queue")
        self.letters.append(
            Letter(
                id=headers["id"],
                name=name,
                queue=getattr(queue, "name", queue),
                headers=headers,
                properties={key: known[key] for key in _KEPT if known.get(key) is not None},
                body=dumps(body).encode(),
            )
        )

    @property
    def connection(self) -> Drawer:
        """Celery asks its producer for one."""
        return self

    def _reraise_as_library_errors(self) -> AbstractContextManager[None]:
        """And the connection for this."""
        return nullcontext()

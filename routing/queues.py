"""Work queues: their names and how each broker is asked for them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from celery.app import amqp
from kombu.entity import Exchange, Queue

from umbel.config.errors import UnknownQueue
from umbel.config.settings import Settings
from umbel.routing.valkey import Connection

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,199}")
_DIRECT = Exchange("", type="direct")


@dataclass(frozen=True)
class WorkQueue:
    """A direct work queue: many producers, many consumers, each message to one of them.

    Attributes:
        name: the queue's name on the broker, as given.
        max_deliveries: runs begun that may end without an outcome (the process died) before the
            message goes to the dead letters; None takes the setting ``max_deliveries``.
    """

    name: str
    max_deliveries: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"{self.name!r} is no queue name; expected letters, digits, '.', '_' and '-'"
            )
        if self.max_deliveries is not None and self.max_deliveries < 1:
            raise ValueError(f"max_deliveries={self.max_deliveries} of queue {self.name!r}; >= 1")

    @classmethod
    def named(cls, queue: WorkQueue | str) -> WorkQueue:
        """A plain string is a queue with defaults."""
        return queue if isinstance(queue, WorkQueue) else cls(queue)


def declaration(queue: WorkQueue, *, quorum: bool) -> Queue:
    """The queue as Kombu declares it.

    It hangs on the default exchange: a message's way back (retry, restore) then leads to this one
    queue and to no other (AMQP 0-9-1, 3.1.3.1).
    """
    arguments = {"x-queue-type": "quorum"} if quorum else None
    return Queue(
        queue.name, _DIRECT, routing_key=queue.name, durable=True, queue_arguments=arguments
    )


class Queues(amqp.Queues):
    """Celery's table of queues, which says what there is when a name is not in it."""

    def _add(self, queue: Queue) -> Queue:
        self[queue.name] = queue  # without Celery's default exchange in place of the unnamed one
        return queue

    def select(self, include: Iterable[str] | str | None) -> None:
        """Consume from these only (``celery worker -Q``).

        Raises:
            UnknownQueue: with the names that there are.
        """
        names = [include] if isinstance(include, str) else list(include or ())
        if unknown := [name for name in names if name not in self]:
            raise UnknownQueue(
                f"no queue {', '.join(map(repr, unknown))} in this app; "
                f"there are: {', '.join(sorted(self))}"
            )
        super().select(names)


class AMQP(amqp.AMQP):
    """Celery's sending side with the queues of the app's jobs."""

    Connection = Connection
    queues_cls = Queues

    def Queues(self, queues: Any, *args: Any, **options: Any) -> Queues:  # noqa: N802  Celery's name
        """Called by Celery once, with the setting ``task_queues``."""
        app = self.app
        quorum = app.conf.task_default_queue_type == "quorum"
        default = app.conf.task_default_queue
        known = {queue.name: queue for queue in queues or ()}
        for queue in (WorkQueue(default), *app.work_queues.values()):
            known.setdefault(queue.name, declaration(queue, quorum=quorum))
        table: Queues = super().Queues(list(known.values()), *args, **options)
        return table

    def declared_late(self, queue: WorkQueue) -> None:
        """A job was declared after something was sent already."""
        if "queues" in self.__dict__ and queue.name not in self.queues:
            quorum = self.app.conf.task_default_queue_type == "quorum"
            self.queues.select_add(declaration(queue, quorum=quorum))


def namespace_of(settings: Settings, app_name: str) -> str:
    """The prefix of every key and exchange of an app: the setting, else the app's name."""
    return settings.namespace or re.sub(r"[^\w.-]", "-", app_name)

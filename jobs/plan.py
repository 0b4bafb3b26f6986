"""How a job is run, as far as configuration may change it without touching code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Literal

from umbel.config.errors import SettingsError
from umbel.config.sections import JobSection, QueueSection
from umbel.config.settings import Settings
from umbel.jobs.retry import Retry
from umbel.routing.queues import WorkQueue

_GRACE_S = 5.0

Order = Literal["strict", "relaxed"]
"""Of a shard's messages: a retry holds its place, or comes again behind the others."""


@dataclass(frozen=True)
class Plan:
    """How a job is run.

    Attributes:
        queue: where its messages wait.
        retry: when a failed run is followed by another; None for never.
        timeout_s: longest time of a run, in seconds; None for no limit.
        max_deliveries: runs that may end without an outcome before the dead letters; None for what
            the setting says.
        rate_limit: runs in a time, as Celery writes it; None for none that the settings name.
        order: of a queue with shards, whether it outlasts a retry.
    """

    queue: WorkQueue
    retry: Retry | None = None
    timeout_s: float | None = None
    max_deliveries: int | None = None
    rate_limit: str | None = None
    order: Order = "strict"

    @property
    def keeps_order(self) -> bool:
        """Whether the next message of a shard waits for the retries of the one before."""
        return bool(self.queue.shards) and self.order == "strict"

    def limit_s(self, is_async: bool) -> float | None:
        """When prefork kills the process. An async job is cancelled in its loop before; where
        retries keep their place, all runs of a message and their pauses are one to Celery."""
        if not self.timeout_s:
            return None
        retry = self.retry if self.keeps_order else None
        delays_s = [0.0] * retry.immediate + list(retry.delays_s) if retry else []
        grace_s = _GRACE_S if is_async else 0
        return self.timeout_s * (1 + len(delays_s)) + sum(delays_s) + grace_s


def planned(job: Any, settings: Settings, queues: Mapping[str, WorkQueue]) -> Plan:
    """What the settings make of how a job was declared.

    Args:
        job: its class.
        settings: of its app.
        queues: that the app's code declares.

    Raises:
        SettingsError: they do not go together with what code says.
    """
    given = getattr(settings, job.section).get(job.name) or JobSection()
    plan: Plan = job.declared
    moved_to = getattr(given, "queue", None)
    queue = _destination(job, moved_to, queues) if moved_to else plan.queue
    of_queue = settings.queues.get(queue.name) or QueueSection()
    queue = queue.configured(settings)
    if bool(queue.shards) != bool(job.shard_key):
        raise SettingsError(
            f"job {job.name!r}: by the settings its queue {queue.name!r} has "
            f"shards={queue.shards}, and in code its shard_key= is {job.shard_key!r}; they go "
            "together, so the number of shards may be changed by a setting, and not whether"
        )
    changes = given.model_dump(exclude_unset=True, exclude={"queue", "retry"})
    deliveries = of_queue.max_deliveries or plan.max_deliveries or queue.max_deliveries
    retry = given.retry.model_dump(exclude_unset=True)
    return replace(
        plan,
        **{"max_deliveries": deliveries, **changes},
        queue=queue,
        retry=replace(plan.retry or Retry(), **retry) if retry else plan.retry,
    )


def _destination(job: Any, name: str, queues: Mapping[str, WorkQueue]) -> WorkQueue:
    try:
        queue = queues.get(name) or WorkQueue(name)
    except ValueError as error:
        raise SettingsError(f"job {job.name!r}, by the settings: {error}") from error
    if queue.events:
        raise SettingsError(f"job {job.name!r}, by the settings: {name!r} is a subscriber's queue")
    return queue


def strangers(
    settings: Settings, jobs: Mapping[str, Any], queues: Mapping[str, Any]
) -> Iterator[str]:
    """What the settings name and this app does not have, one line each.

    It may be another app's, which shares the file, or a typing error.

    Args:
        settings: of the app.
        jobs: its jobs and subscribers.
        queues: its queues.
    """
    known = {
        section: [name for name, job in jobs.items() if job.section == section]
        for section in ("jobs", "subscribers")
    } | {"queues": list(queues)}
    for section, names in known.items():
        for name in getattr(settings, section).keys() - set(names):
            near = get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            yield f"setting {section}: there is no {name!r} in this app{hint}"

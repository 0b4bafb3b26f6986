"""What an app declares on its broker, and where each part of it was said."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from celery.app.utils import sanitize_url

from umbel.config.settings import Settings
from umbel.config.sources import Source
from umbel.routing import rabbitmq
from umbel.routing.queues import WorkQueue, not_kept
from umbel.routing.topics import topics


@dataclass(frozen=True)
class JobShape:
    """A job or a subscriber.

    Attributes:
        name: its name.
        kind: ``jobs`` or ``subscribers``, as the settings call them.
        retry: when a failed run is followed by another, by the names of `umbel.Retry`.
        timeout_s: longest time of a run.
        max_deliveries: runs that may end without an outcome.
        rate_limit: runs in a time.
        configured: what was not said in code, with the source that said it.
    """

    name: str
    kind: str
    retry: dict[str, Any] | None
    timeout_s: float | None
    max_deliveries: int
    rate_limit: str | None
    configured: dict[str, str]


@dataclass(frozen=True)
class QueueShape:
    """A work queue, a subscriber's queue, or one of Celery's ``task_queues``.

    Attributes:
        name: its name.
        parts: its queues on the broker.
        arguments: that they are declared with.
        events: patterns of the events that it gets.
        limits: what `umbel.WorkQueue` says of it, where that is no default.
        not_kept: what of that the broker keeps in part only.
        jobs: that are sent there.
        configured: what was not said in code, with the source that said it.
    """

    name: str
    parts: Sequence[str]
    arguments: dict[str, Any]
    events: Sequence[str] = ()
    limits: dict[str, Any] = field(default_factory=dict)
    not_kept: Sequence[str] = ()
    jobs: Sequence[JobShape] = ()
    configured: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Topology:
    """All of one app.

    Attributes:
        app: its name.
        namespace: prefix of its keys and exchanges.
        broker: its URL, without the password.
        exchange: that events go to.
        given_up: the queue for what RabbitMQ gives up; None elsewhere.
        queues: by name.
        sources: that were read, who wins first.
    """

    app: str
    namespace: str
    broker: str
    exchange: str
    given_up: str | None
    queues: Sequence[QueueShape]
    sources: Sequence[str]


def topology(app: Any) -> Topology:
    """What an app declares: from its code and settings, without asking the broker."""
    sources = Settings.sources()
    jobs = sorted({id(job): job for job in app.jobs.values()}.values(), key=lambda job: job.name)
    families: dict[str, WorkQueue] = app.amqp.queues.families
    ours = {part for queue in families.values() for part in queue.parts}
    plain = [queue for name, queue in app.amqp.queues.items() if name not in ours]
    described = [_family(app, queue, jobs, sources) for queue in families.values()]
    described += [QueueShape(one.name, [one.name], one.queue_arguments or {}) for one in plain]
    return Topology(
        app=app.main,
        namespace=app.prefix,
        broker=sanitize_url(app.conf.broker_write_url, "**"),
        exchange=topics(app.prefix).name,
        given_up=app.amqp.net and app.amqp.net.name,
        queues=sorted(described, key=lambda queue: queue.name),
        sources=[source.name for source in sources],
    )


def _family(
    app: Any, queue: WorkQueue, jobs: Iterable[Any], sources: Sequence[Source]
) -> QueueShape:
    own = [job for job in jobs if job.work_queue.name == queue.name]
    retries = [job.retry_policy for job in own if job.retry_policy]
    delays_s = [delay_s for retry in retries for delay_s in retry.delays_s]
    broken = [not_kept(queue, app.amqp.net), app.amqp.net and rabbitmq.not_kept(delays_s)]
    limits = {
        name: value
        for name in ("max_deliveries", "prefetch", "priorities", "shards")
        if (value := getattr(queue, name))
    }
    return QueueShape(
        name=queue.name,
        parts=queue.parts,
        arguments=app.amqp.queues[queue.parts[0]].queue_arguments or {},
        events=queue.events,
        limits=limits,
        not_kept=[said for said in broken if said],
        jobs=[_job(app, job, sources) for job in own],
        configured=dict(_said(sources, "queues", queue.name)),
    )


def _job(app: Any, job: Any, sources: Sequence[Source]) -> JobShape:
    retry = job.retry_policy
    return JobShape(
        name=job.name,
        kind=job.section,
        retry=retry and {"immediate": retry.immediate, "delays_s": list(retry.delays_s)},
        timeout_s=job.timeout_s,
        max_deliveries=job.max_deliveries or app.settings.max_deliveries,
        rate_limit=job.rate_limit,
        configured=dict(_said(sources, job.section, job.name)),
    )


def _said(sources: Sequence[Source], section: str, name: str) -> Iterator[tuple[str, str]]:
    """What each source says there; of a setting that several have, who wins comes last."""
    for source in reversed(sources):
        if source.has((section, name)):
            path = Path(source.name)
            label = path.name if path.is_absolute() else source.name
            yield from dict.fromkeys(source.values[section][name], label).items()

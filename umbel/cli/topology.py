"""``celery -A app topology show | declare | check | unsubscribe``."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

import click

from umbel.app import Umbel
from umbel.cli.common import app_of, errors_shown
from umbel.jobs.plan import strangers
from umbel.jobs.topology import JobShape, QueueShape, Topology
from umbel.jobs.topology import topology as topology_of
from umbel.routing import topology as on_broker


@click.group()
def topology() -> None:
    """Queues, events and subscribers: as they are declared, and as the broker has them."""


@topology.command()
@click.option(
    "--format",
    "format_",
    type=click.Choice(["table", "mermaid", "json", "celery"]),
    default="table",
    show_default=True,
    help="celery: the task_queues that a plain Celery producer declares.",
)
@click.option("--celery", "format_", flag_value="celery", hidden=True)
@click.option("--json", "format_", flag_value="json", hidden=True)
@click.pass_context
def show(context: click.Context, format_: str) -> None:
    """Show what the app declares, and where it was said; asks no broker."""
    with errors_shown():
        for line in _FORMATS[format_](topology_of(app_of(context))):
            click.echo(line)


@topology.command()
@click.pass_context
def declare(context: click.Context) -> None:
    """Declare all of it: from then on events are kept for their subscribers."""
    app = app_of(context)
    with errors_shown(), app.sender.reachable("the topology"):
        for name in on_broker.declare(app):
            click.echo(f"{name} is there")
    for queue in topology_of(app).queues:
        for said in queue.not_kept:
            click.echo(f"note: {queue.name}: {said}")


@topology.command()
@click.pass_context
def check(context: click.Context) -> None:
    """Say what the broker has that differs; exit status 1 if something does."""
    app = app_of(context)
    with errors_shown(), app.sender.reachable("the topology"):
        findings = on_broker.check(app)
        for line in strangers(app.settings, app.jobs, app.amqp.queues.families):
            click.echo(f"note: {line}")
    for finding in findings:
        click.echo(f"{'' if finding.differs else 'note: '}{finding.subject}: {finding.problem}")
    if any(finding.differs for finding in findings):
        sys.exit(1)
    click.echo("the broker has what this app declares")


@topology.command()
@click.argument("name")
@click.option("--queue", help="Of a subscriber that is not declared any more, where it had one.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_context
def unsubscribe(context: click.Context, name: str, queue: str | None, yes: bool) -> None:
    """Remove a subscriber's queue, with the events that wait in it.

    NAME is the subscriber's; it need not be declared any more.
    """
    app = app_of(context)
    with errors_shown(), app.sender.reachable("the topology"):
        queue = queue or app.queue_of(name)
        if queue in app.amqp.queues and queue not in app.subscriptions:
            raise click.ClickException(f"{queue} is no subscriber's queue; {_known(app)}")
        waiting = on_broker.waiting(app, queue) or 0
        if not waiting and not on_broker.bound(app, queue):
            raise click.ClickException(f"no events go to a queue {queue!r}; {_known(app)}")
        if waiting and not yes:
            click.confirm(f"{waiting} events wait in {queue}. Drop them?", abort=True)
        click.echo(f"{queue} is gone; dropped events: {app.unsubscribe(name, queue=queue)}")
    if queue in app.subscriptions:
        click.echo(f"it comes back with the next worker: subscriber {name!r} is still declared")


def _known(app: Umbel) -> str:
    declared = ", ".join(sorted(job.name for job in app.subscriptions.values()))
    return f"subscribers of this app: {declared or 'none'}"


def _table(shown: Topology) -> Iterator[str]:
    yield f"{shown.app} on {shown.broker}, namespace {shown.namespace}"
    yield f"settings: {', '.join(shown.sources)}, code"
    for queue in shown.queues:
        yield ""
        yield f"queue {queue.name}{_facts(queue.limits)}{_origin(queue.configured)}"
        if len(queue.parts) > 1:
            yield f"    parts: {', '.join(queue.parts)}"
        yield from (f"    note: {said}" for said in queue.not_kept)
        if queue.events:
            yield f"    events of {shown.exchange}: {', '.join(queue.events)}"
        for job in queue.jobs:
            yield f"    {job.kind[:-1]} {job.name}{_facts(_limits(job))}{_origin(job.configured)}"
        if queue.arguments:
            yield f"    arguments: {json.dumps(queue.arguments)}"
    yield ""
    if shown.given_up:
        yield f"what RabbitMQ gives up: queue {shown.given_up}"
    yield "what fails for good: deadletters list"


def _limits(job: JobShape) -> dict[str, Any]:
    retry = job.retry or {}
    limits = {"retries at once": retry.get("immediate"), "then after s": retry.get("delays_s")}
    limits |= {"timeout_s": job.timeout_s, "max_deliveries": job.max_deliveries}
    limits |= {"rate_limit": job.rate_limit}
    return {name: value for name, value in limits.items() if value}


def _facts(facts: Mapping[str, Any]) -> str:
    said = (f"{name} {value}" if value is not True else name for name, value in facts.items())
    return "".join(f", {one}" for one in said)


def _origin(configured: Mapping[str, str]) -> str:
    said = ", ".join(f"{name} by {source}" for name, source in configured.items())
    return f" [{said}]" if said else ""


def _mermaid(shown: Topology) -> Iterator[str]:
    yield "flowchart LR"
    if any(queue.events for queue in shown.queues):
        yield f"    exchange{{{{{shown.exchange}}}}}"
    for number, queue in enumerate(shown.queues):
        yield f'    q{number}[("{queue.name}")]'
        for pattern in queue.events:
            yield f'    exchange -- "{pattern}" --> q{number}'
        for place, job in enumerate(queue.jobs):
            yield f'    q{number} --> j{number}_{place}["{job.name}"]'


def _json(shown: Topology) -> Iterator[str]:
    yield json.dumps(asdict(shown), indent=2)


def _celery(shown: Topology) -> Iterator[str]:
    yield "from kombu import Exchange, Queue"
    yield ""
    yield "direct = Exchange('', type='direct')"
    yield "task_queues = ["
    yield from (f"    {_queue(queue, part)}," for queue in shown.queues for part in queue.parts)
    yield "]"


def _queue(queue: QueueShape, part: str) -> str:
    arguments = f", queue_arguments={queue.arguments!r}" if queue.arguments else ""
    return f"Queue({part!r}, direct, routing_key={part!r}{arguments})"


_FORMATS: dict[str, Callable[[Topology], Iterator[str]]] = {
    "table": _table,
    "mermaid": _mermaid,
    "json": _json,
    "celery": _celery,
}

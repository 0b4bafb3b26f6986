"""Routes of jobs: ask for one, look at it, follow it, cancel it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from pydantic_core import from_json, to_json

from umbel.config.errors import UnknownJob
from umbel.jobs.job import Job
from umbel.jobs.records import Record
from umbel.producers.web.documents import Accepted, Status, accepted, matches, status, tagged
from umbel.producers.web.idempotency import request_once
from umbel.producers.web.problems import problem
from umbel.producers.web.schemas import JsonSchema, json_body
from umbel.producers.web.service import Service
from umbel.producers.web.streams import follow

MAX_MESSAGE_BYTES = 1024**2

AnyJob = Job[Any, Any, Any]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]
LastEventId = Annotated[str | None, Header()]


@dataclass(frozen=True)
class _Jobs:
    """What the routes work on."""

    app: Service
    exposed: dict[str, AnyJob]

    async def record(self, job_id: str) -> Record:
        """The record of a job that may be seen here."""
        record = await self.app.records.aread(job_id)
        if record.name not in self.exposed:
            raise UnknownJob(f"no job {job_id!r} is known: never tracked, or its record expired")
        return record


def job_routes(app: Service, expose: Sequence[AnyJob], bodies: dict[str, JsonSchema]) -> APIRouter:
    """The routes, one to ask for each exposed job.

    Args:
        app: whose jobs they are.
        expose: those that may be asked for and seen.
        bodies: the schema of what each takes, by its name.
    """
    jobs = _Jobs(app, {job.name: job for job in expose})
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
    for job in expose:
        _add_request(router, jobs, job, bodies[job.name])
    _add_reading(router, jobs)
    _add_cancel(router, jobs)

    @router.post("/{name}", include_in_schema=False)
    async def refuse(name: str) -> None:
        """Without this it would be a 405: the path is one that can be read."""
        known = ", ".join(jobs.exposed) or "none"
        raise problem(404, "Unknown job", f"no job {name!r} can be asked for; there are: {known}")

    return router


def _add_request(router: APIRouter, jobs: _Jobs, job: AnyJob, body: JsonSchema) -> None:
    async def ask(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
        message = job.contract.checked(given := await _json(request))
        if idempotency_key:
            job_id = await request_once(jobs.app, job, message, given, idempotency_key)
        else:
            job_id = (await job.arequest(message)).id
        answer = accepted(await _requested(jobs, job_id), _root(request))
        headers = {"Location": answer["links"]["self"]}
        return Response(to_json(answer), 202, headers, media_type="application/json")

    summary, _, description = inspect.cleandoc(job.__doc__ or job.name).partition("\n")
    router.add_api_route(
        f"/{job.name}",
        ask,
        methods=["POST"],
        status_code=202,
        name=job.name,
        operation_id=job.name,
        summary=summary,
        description=description.strip(),
        response_model=Accepted,
        response_description="Accepted: follow `Location`.",
        openapi_extra=json_body(body),
    )


async def _requested(jobs: _Jobs, job_id: str) -> Record:
    """The record of a job that was asked for, now or with the same key before."""
    try:
        return await jobs.record(job_id)
    except UnknownJob as error:
        detail = "this key's job has ended and its outcome is forgotten; to run it again, use a new"
        raise problem(410, "Outcome forgotten", f"{detail} key") from error


def _add_reading(router: APIRouter, jobs: _Jobs) -> None:
    @router.get("/{job_id}", summary="Where a job is", response_model=Status)
    async def read(job_id: str, request: Request) -> Response:
        """State, progress, result or error. The `ETag` saves reading what has not changed."""
        body, tag = tagged(status(await jobs.record(job_id), _root(request)))
        headers = {"ETag": f'"{tag}"', "Cache-Control": "no-cache"}
        if matches(request.headers.get("If-None-Match"), tag):
            return Response(status_code=304, headers=headers)
        return Response(body, headers=headers, media_type="application/json")

    @router.get("/{job_id}/events", summary="Follow a job", responses=_EVENTS)
    async def events(job_id: str, request: Request, last_event_id: LastEventId = None) -> Response:
        """Server-sent events named `job`: the job now and at each change, up to its end."""
        record = await jobs.record(job_id)
        return follow(jobs.app.records, record, _root(request), last_event_id)


def _add_cancel(router: APIRouter, jobs: _Jobs) -> None:
    @router.delete(
        "/{job_id}",
        summary="Cancel a job",
        status_code=202,
        responses={200: {"model": Accepted, "description": "It had ended already."}},
    )
    async def cancel(job_id: str, request: Request, response: Response) -> Accepted:
        """A job that waits never runs; one that runs is told."""
        record = await jobs.record(job_id)
        response.status_code = 200 if record.state.final else 202
        return accepted(record, _root(request), await jobs.app.records.acancel(job_id))


_EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "Each with the job as JSON."},
    204: {"description": "The job has ended, and `Last-Event-ID` is its last event."},
}


async def _json(request: Request) -> Any:
    """The body, of which a stranger chooses the size and the depth."""
    media_type = request.headers.get("Content-Type", "").partition(";")[0].strip().lower()
    if media_type != "application/json" and not media_type.endswith("+json"):
        got = media_type or "none"
        raise problem(415, "Not JSON", f"expected Content-Type: application/json, got {got}")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_MESSAGE_BYTES:
            detail = f"a message has at most {MAX_MESSAGE_BYTES} bytes; files go by reference"
            raise problem(413, "Message too large", detail)
    try:
        return from_json(bytes(body), allow_inf_nan=False)
    except ValueError as error:
        raise problem(400, "Not JSON", f"the body is no JSON: {error}") from error


def _root(request: Request) -> str:
    return str(request.scope.get("root_path", ""))

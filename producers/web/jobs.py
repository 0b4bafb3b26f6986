"""Routes of jobs: ask for one, look at it, follow it, cancel it."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import NAMESPACE_URL, uuid5

from fastapi import APIRouter, Header, Request, Response
from pydantic_core import from_json, to_json
from sse_starlette import EventSourceResponse, ServerSentEvent

from umbel.config.errors import UnknownJob
from umbel.config.store import required
from umbel.jobs.blobs import Blob
from umbel.jobs.job import Job
from umbel.jobs.records import Record
from umbel.producers.web.problems import problem
from umbel.producers.web.service import Service

MAX_MESSAGE_BYTES = 1024**2
IDEMPOTENCY_TTL_S = 24 * 3600

AnyJob = Job[Any, Any, Any]
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


@dataclass(frozen=True)
class _Jobs:
    """What the routes work on."""

    app: Service
    exposed: dict[str, AnyJob]

    async def record(self, job_id: str) -> Record:
        """The record of a job that may be seen here."""
        record = await self.app.records.aread(job_id)
        if record.name not in self.exposed:
            raise UnknownJob(f"no job {job_id!r} is known here")
        return record

    def shown(self, record: Record) -> dict[str, Any]:
        """A record as a client sees it."""
        progress = record.progress
        return {
            "id": record.job_id,
            "name": record.name,
            "state": record.state,
            "attempt": record.attempt,
            "progress": progress and {**progress.model_dump(), "percent": progress.percent},
            "result": record.result,
            "error": record.error,
            "created_at": record.created_at,
            "updated_at": record.updated_at,
            "links": {**_links(record.job_id), "files": list(_files(record.result))},
        }


def job_routes(app: Service, expose: Sequence[AnyJob]) -> APIRouter:
    """The routes, one to ask for each exposed job."""
    jobs = _Jobs(app, {job.name: job for job in expose})
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"])
    for job in expose:
        _add_request(router, jobs, job)

    @router.get("/{job_id}", summary="Where a job is")
    async def read(job_id: str, request: Request) -> Response:
        """State, progress, result or error. An ``ETag`` saves asking for what has not changed."""
        body = to_json(jobs.shown(await jobs.record(job_id)))
        etag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        headers = {"ETag": etag, "Cache-Control": "no-cache"}
        if request.headers.get("If-None-Match") == etag:
            return Response(status_code=304, headers=headers)
        return Response(body, media_type="application/json", headers=headers)

    @router.get("/{job_id}/events", summary="Follow a job")
    async def events(job_id: str) -> EventSourceResponse:
        """Server-sent events: the job now and at each change, up to its end."""
        await jobs.record(job_id)  # unknown is a 404, not a broken stream
        return EventSourceResponse(_events(jobs, job_id))

    @router.delete("/{job_id}", summary="Cancel a job", status_code=202)
    async def cancel(job_id: str, response: Response) -> dict[str, Any]:
        """A job that waits never runs; one that runs is told. 200 when it had ended already."""
        record = await jobs.record(job_id)
        response.status_code = 200 if record.state.final else 202
        state = await app.records.acancel(job_id)
        return {"id": job_id, "state": state, "links": _links(job_id)}

    return router


def _add_request(router: APIRouter, jobs: _Jobs, job: AnyJob) -> None:
    contract = job.contract

    async def ask(request: Request, idempotency_key: IdempotencyKey = None) -> Response:
        message = contract.checked(await _json(request))
        job_id = idempotency_key and await _job_id(jobs.app, job.name, idempotency_key, message)
        handle = await job.arequest(message, **({"job_id": job_id} if job_id else {}))
        record = await handle.arecord()
        return Response(
            to_json(jobs.shown(record)),
            status_code=202,
            headers={"Location": f"/v1/jobs/{handle.id}"},
            media_type="application/json",
        )

    schema = contract.model_json_schema(ref_template="#/components/schemas/{model}")
    router.add_api_route(
        f"/{job.name}",
        ask,
        methods=["POST"],
        status_code=202,
        name=job.name,
        operation_id=job.name,
        summary=(job.__doc__ or job.name).strip().partition("\n")[0],
        responses={202: {"description": "Queued; follow `Location`."}},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": _inlined(schema)}},
            }
        },
    )


async def _json(request: Request) -> Any:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_MESSAGE_BYTES:
            detail = f"a message has at most {MAX_MESSAGE_BYTES} bytes; files go by reference"
            raise problem(413, "Message too large", detail)
    try:
        return from_json(body)
    except ValueError as error:
        raise problem(400, "Not JSON", f"the body is no JSON: {error}") from error


async def _job_id(app: Service, name: str, key: str, message: Any) -> str:
    """The id that follows from an idempotency key; the same key asks for the same thing."""
    job_id = str(uuid5(NAMESPACE_URL, f"umbel:{app.prefix}:{name}:{key}"))
    digest = hashlib.sha256(to_json(message.payload())).hexdigest()
    client = await required(app.store, "an Idempotency-Key").async_client()
    place = f"{app.prefix}:idempotency:{job_id}"
    is_new = await client.set(place, digest, nx=True, ex=IDEMPOTENCY_TTL_S)
    if not is_new and await client.get(place) != digest:
        raise problem(
            422,
            "Idempotency key used twice",
            f"{key!r} was sent with another message before; use a new key",
        )
    return job_id


async def _events(jobs: _Jobs, job_id: str) -> AsyncIterator[ServerSentEvent]:
    async for record in jobs.app.records.awatch(job_id):
        yield ServerSentEvent(data=to_json(jobs.shown(record)).decode(), event="job")


def _links(job_id: str) -> dict[str, str]:
    here = f"/v1/jobs/{job_id}"
    return {"self": here, "events": f"{here}/events"}


def _files(result: Any) -> Iterator[dict[str, Any]]:
    """Where each file of a result can be had, at whatever depth it is."""
    if isinstance(result, dict):
        if result.keys() >= Blob.model_fields.keys():
            href = f"/v1/blobs/{result['sha256']}?type={result['media_type']}"
            yield {"href": href, **result}
            return
        result = list(result.values())
    if isinstance(result, list):
        for inner in result:
            yield from _files(inner)


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """A schema with its definitions in it, since each contract brings its own."""
    definitions = schema.pop("$defs", {})

    def walk(node: Any) -> Any:
        if isinstance(node, dict):
            if reference := node.get("$ref"):
                return walk(definitions[reference.rpartition("/")[2]])
            return {name: walk(inner) for name, inner in node.items()}
        return [walk(inner) for inner in node] if isinstance(node, list) else node

    inlined: dict[str, Any] = walk(schema)
    return inlined

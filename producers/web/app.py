"""A web service made of an app's jobs. It holds no state: any number of it are one service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from umbel.jobs.job import Job
from umbel.producers.web.blobs import blob_routes
from umbel.producers.web.health import health_routes
from umbel.producers.web.jobs import job_routes
from umbel.producers.web.problems import add_problems
from umbel.producers.web.schemas import add_components, contract_schemas, result_schemas
from umbel.producers.web.service import Service

MAX_UPLOAD_BYTES = 2 * 1024**3


def create_app(
    app: Service, expose: Sequence[Job[Any, Any, Any]], *, max_upload_bytes: int = MAX_UPLOAD_BYTES
) -> FastAPI:
    """A FastAPI application for the jobs of an app.

    It may be mounted anywhere in another one, and further routes or middleware added to it: who may
    ask is for them to say. Nothing is connected before it is served.

    Args:
        app: an `umbel.Umbel`.
        expose: the jobs that may be asked for; no other one can be seen.
        max_upload_bytes: the largest file that is taken.
    """
    # With the documentation's scripts in it: a server's network need not reach a CDN.
    web = FastAPIOffline(
        title=f"{app.main} jobs",
        version=version("umbel"),
        description="Ask for a job, follow it, fetch its result. Made by Umbel.",
        lifespan=_lifespan_of(app),
    )
    bodies, components = contract_schemas(expose)
    result, result_components = result_schemas(expose)
    web.include_router(job_routes(app, expose, bodies))
    web.include_router(blob_routes(app, max_upload_bytes))
    web.include_router(health_routes(app))
    add_problems(web)
    add_components(web, components | result_components, result)
    return web


def _lifespan_of(app: Service) -> Any:
    @asynccontextmanager
    async def lifespan(_web: FastAPI) -> AsyncIterator[None]:
        # Its first use reads the settings: a wrong one ends the start, and not each request.
        await asyncio.to_thread(lambda: app.store)
        yield

    return lifespan

"""A web service made of an app's jobs. It holds no state: any number of it are one service."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi_offline import FastAPIOffline

from umbel.config.store import required
from umbel.jobs.job import Job
from umbel.producers.web.blobs import blob_routes
from umbel.producers.web.jobs import job_routes
from umbel.producers.web.problems import add_problems, problem
from umbel.producers.web.service import Service

READY_WITHIN_S = 1.0
MAX_UPLOAD_BYTES = 2 * 1024**3


def create_app(
    app: Service, expose: Sequence[Job[Any, Any, Any]], *, max_upload_bytes: int = MAX_UPLOAD_BYTES
) -> FastAPI:
    """A FastAPI application for the jobs of an app.

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
    )
    add_problems(web)
    web.include_router(job_routes(app, expose))
    web.include_router(blob_routes(app, max_upload_bytes))
    _add_health(web, app)
    return web


def _add_health(web: FastAPI, app: Service) -> None:
    @web.get("/healthz", tags=["health"], summary="Whether the process lives")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @web.get("/readyz", tags=["health"], summary="Whether broker and store answer")
    async def readyz() -> dict[str, str]:
        checks = {"broker": _reach_broker, "store": _reach_store}
        answers = await asyncio.gather(*(_within(check, app) for check in checks.values()))
        away = [name for name, answered in zip(checks, answers, strict=True) if not answered]
        if away:
            what = " and ".join(away)
            raise problem(503, "Not ready", f"no answer from: {what}", headers={"Retry-After": "5"})
        return {"status": "ready"}


async def _within(check: Callable[[Service], None], app: Service) -> bool:
    try:
        await asyncio.wait_for(asyncio.to_thread(check, app), READY_WITHIN_S)
    except Exception:  # whatever it is: not ready
        return False
    return True


def _reach_broker(app: Service) -> None:
    with app.connection_for_write() as connection:
        connection.connect()


def _reach_store(app: Service) -> None:
    required(app.store, "the web service").client.ping()

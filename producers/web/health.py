"""Health for balancers and orchestrators: of the process, and of what it needs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from fastapi import APIRouter

from umbel.config.store import required
from umbel.producers.web.problems import unavailable
from umbel.producers.web.service import Service

READY_WITHIN_S = 1.0

_log = logging.getLogger("umbel.web")
Check = Callable[[Service], Awaitable[object]]


def health_routes(app: Service) -> APIRouter:
    """The routes."""
    router = APIRouter(tags=["health"])
    checks = {"broker": _Check(app, _reach_broker), "store": _Check(app, _reach_store)}

    @router.get("/healthz", summary="Whether the process lives")
    async def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @router.get("/readyz", summary="Whether broker and store answer")
    async def readyz() -> dict[str, str]:
        answers = await asyncio.gather(*(check.passes() for check in checks.values()))
        away = [name for name, answered in zip(checks, answers, strict=True) if not answered]
        if away:
            raise unavailable("Not ready", f"no answer from: {' and '.join(away)}")
        return {"status": "ready"}

    return router


class _Check:
    """One at a time: a server that hangs must not cost a thread for each time we are asked."""

    def __init__(self, app: Service, check: Check) -> None:
        self._app, self._check = app, check
        self._running: asyncio.Future[object] | None = None

    async def passes(self) -> bool:
        """Whether the check succeeds in time."""
        if self._running is None or self._running.done():
            self._running = asyncio.ensure_future(self._check(self._app))
        try:
            await asyncio.wait_for(asyncio.shield(self._running), READY_WITHIN_S)
        except Exception as error:  # whatever it is: not ready
            _log.warning("not ready: %s: %r", self._check.__name__, error)
            return False
        return True


async def _reach_broker(app: Service) -> None:
    def connect() -> None:
        with app.connection_for_write() as connection:
            connection.connect()

    await asyncio.to_thread(connect)


async def _reach_store(app: Service) -> None:
    client = await required(app.store, "the web service").async_client()
    await client.ping()

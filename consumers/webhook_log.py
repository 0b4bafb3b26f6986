"""What was tried to deliver callbacks to URLs: the last attempts, in the state store."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from pydantic import BaseModel

from umbel.config.store import Store

MOST = 10_000
"""Attempts that are kept."""
OLDEST_S = 30 * 24 * 3600
"""How long one is kept."""
_PAGE = 500


class Attempt(BaseModel):
    """One attempt at one URL.

    Attributes:
        webhook_id: of the callback, as the receiver sees it.
        url: where it went, without its query.
        type: ``umbel.completed`` or ``umbel.failed``.
        job: whose end was told.
        job_id: likewise.
        attempt: which one, from 1.
        at: when it began, UTC.
        duration_s: how long it took.
        status: what the receiver answered; None if nothing.
        error: why it counts as not delivered; empty if it was.
    """

    webhook_id: str
    url: str
    type: str
    job: str
    job_id: str
    attempt: int
    at: datetime
    duration_s: float
    status: int | None = None
    error: str = ""


class WebhookLog:
    """The last attempts of one app.

    Args:
        store: where they are.
        namespace: the app's prefix of every key.
    """

    def __init__(self, store: Store, namespace: str) -> None:
        self._client = store.client
        self._key = f"{namespace}:webhooks"

    def add(self, attempt: Attempt) -> None:
        """Keep it, and drop what is too old or too much."""
        oldest = datetime.now(UTC) - timedelta(seconds=OLDEST_S)
        with self._client.pipeline() as pipe:
            entry: dict[Any, Any] = {"attempt": attempt.model_dump_json()}
            pipe.xadd(self._key, entry, maxlen=MOST, approximate=False)
            pipe.xtrim(self._key, minid=int(oldest.timestamp() * 1000), approximate=False)
            pipe.expire(self._key, OLDEST_S)
            pipe.execute()

    def find(self, id: str | None = None, *, failed: bool = False) -> Iterator[Attempt]:
        """The attempts, the newest first.

        Args:
            id: of a callback or of the job that it tells of; all without.
            failed: only those after which the callback was not delivered.
        """
        for attempt in self._all():
            if id in {None, attempt.webhook_id, attempt.job_id} and (attempt.error or not failed):
                yield attempt

    def _all(self) -> Iterator[Attempt]:
        before = "+"
        while page := self._page(before):
            for entry, fields in page:
                yield Attempt.model_validate_json(fields["attempt"])
                before = f"({entry}"

    def _page(self, before: str) -> list[Any]:
        page: Any = self._client.xrevrange(self._key, max=before, count=_PAGE)
        return list(page)

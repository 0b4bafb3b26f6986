"""The same request twice is one job.

The header is that of draft-ietf-httpapi-idempotency-key-header, which also says that a key used
for something else is a 422, and one whose first request has not been answered a 409.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any
from uuid import NAMESPACE_URL, uuid5

from redis.asyncio import Redis
from redis.exceptions import LockError

from umbel.config.store import required
from umbel.jobs.contracts import Message
from umbel.jobs.job import Job
from umbel.producers.web.problems import problem
from umbel.producers.web.service import Service

KEY_TTL_S = 24 * 3600
"""How long a key is remembered. Later it still names the same job."""

_SENT = "sent "


async def request_once(
    app: Service, job: Job[Any, Any, Any], message: Message, body: Any, key: str
) -> str:
    """Send a job unless this key has sent it already.

    The key's job id follows from the key, so that a repeat after an uncertain failure (no answer
    from the broker, a web process that died) cannot make a second job either: a copy of a job that
    has ended is dropped by the worker.

    Args:
        app: whose store remembers the key.
        job: what to ask for.
        message: checked already.
        body: what it was made of, as JSON types: the message may hold a default that is new each
            time.
        key: the client's.

    Returns:
        The job's id.

    Raises:
        Problem: 422 when the key was used for another message, 409 when a request with it goes on.
        BrokerUnavailable, StoreRequired: see `Job.request`.
    """
    job_id = str(uuid5(NAMESPACE_URL, f"umbel:{app.prefix}:{job.name}:{key}"))
    place = f"{app.prefix}:idempotency:{job_id}"
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    client = await required(app.store, "an Idempotency-Key").async_client()
    if await _sent(client, place, digest):
        return job_id
    try:
        async with _alone(app, client, place):
            if not await _sent(client, place, digest):  # by whom we waited for
                await client.set(place, digest, nx=True, ex=KEY_TTL_S)
                await job.arequest(message, job_id=job_id)
                await client.set(place, _SENT + digest, ex=KEY_TTL_S)
    except LockError as error:
        detail = "a request with this key has not been answered yet; repeat this one later"
        raise problem(409, "Idempotency key in use", detail) from error
    return job_id


async def _sent(client: Redis, place: str, digest: str) -> bool:
    known: str | None = await client.get(place)  # type: ignore[assignment]  # decoded, see Store
    if known is not None and known.removeprefix(_SENT) != digest:
        detail = "this key was sent with another message before; use a new one"
        raise problem(422, "Idempotency key used twice", detail)
    return known == _SENT + digest


def _alone(app: Service, client: Redis, place: str) -> Any:
    """For as long as a send may take: two requests at once would be two messages."""
    patience_s = app.settings.publish_timeout_s
    return client.lock(
        f"{place}:sending",
        timeout=4 * patience_s,
        blocking_timeout=patience_s,
        raise_on_release_error=False,
    )

"""What a client sees of a job, as JSON, and the tag that says whether it has changed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import suppress
from datetime import datetime
from typing import Any
from urllib.parse import urlencode

from pydantic import ValidationError
from pydantic_core import to_json
from typing_extensions import TypedDict

from umbel.jobs.blobs import Blob
from umbel.jobs.records import JobState, Progress, Record


class Links(TypedDict):
    """Where a job is, and where its changes are."""

    self: str
    events: str


class FileLink(TypedDict):
    """A file in a result, and where it can be fetched."""

    href: str
    uri: str
    size_bytes: int
    sha256: str
    media_type: str


class LinksAndFiles(Links):
    """With the files of the result, at whatever depth they are in it."""

    files: list[FileLink]


class Accepted(TypedDict):
    """The answer to a request for a job, and to its cancellation."""

    id: str
    name: str
    state: JobState
    links: Links


class Done(TypedDict):
    """How far a job is, in its own units; ``percent`` where the total is known."""

    done: float
    total: float | None
    percent: float | None
    note: str


class Status(TypedDict):
    """All that a client may know of a job: never its traceback."""

    id: str
    name: str
    state: JobState
    attempt: int
    progress: Done | None
    result: Any
    error: str | None
    created_at: datetime
    updated_at: datetime
    links: LinksAndFiles


def accepted(record: Record, root: str, state: JobState | None = None) -> Accepted:
    """A job in short.

    Args:
        record: what is known of it.
        root: where the service is mounted, ``""`` or ``/some/path``.
        state: if it is a newer one.
    """
    return {
        "id": record.job_id,
        "name": record.name,
        "state": state or record.state,
        "links": _links(record.job_id, root),
    }


def status(record: Record, root: str) -> Status:
    """A job in full; `root` as above."""
    return {
        "id": record.job_id,
        "name": record.name,
        "state": record.state,
        "attempt": record.attempt,
        "progress": _done(record.progress) if record.progress else None,
        "result": record.result,
        "error": record.error,
        "created_at": record.created_at,
        "updated_at": record.updated_at,
        "links": {
            **_links(record.job_id, root),
            "files": [_file_link(blob, root) for blob in _blobs(record.result)],
        },
    }


def tagged(document: Status) -> tuple[bytes, str]:
    """The document as JSON, and its hash: an entity tag without the quotes."""
    body = to_json(document)
    return body, hashlib.sha256(body).hexdigest()[:32]


def matches(if_none_match: str | None, tag: str) -> bool:
    """Whether an ``If-None-Match`` header (RFC 9110, 13.1.2) names this tag."""
    wanted = {one.strip().removeprefix("W/") for one in (if_none_match or "").split(",")}
    return bool(wanted & {f'"{tag}"', "*"})


def blob_address(blob: Blob, root: str) -> str:
    """Where a file can be fetched."""
    return f"{root}/v1/blobs/{blob.sha256}?{urlencode({'type': blob.media_type})}"


def _done(progress: Progress) -> Done:
    return {
        "done": progress.done,
        "total": progress.total,
        "percent": progress.percent,
        "note": progress.note,
    }


def _links(job_id: str, root: str) -> Links:
    here = f"{root}/v1/jobs/{job_id}"
    return {"self": here, "events": f"{here}/events"}


def _file_link(blob: Blob, root: str) -> FileLink:
    return {
        "href": blob_address(blob, root),
        "uri": blob.uri,
        "size_bytes": blob.size_bytes,
        "sha256": blob.sha256,
        "media_type": blob.media_type,
    }


def _blobs(result: Any) -> Iterator[Blob]:
    if isinstance(result, dict):
        if result.keys() == Blob.model_fields.keys():
            with suppress(ValidationError):  # something of the user's that only looks alike
                yield Blob.model_validate(result)
            return
        result = list(result.values())
    if isinstance(result, list):
        for inner in result:
            yield from _blobs(inner)

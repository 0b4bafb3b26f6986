"""Files in and out, in pieces: none is ever whole in memory."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import PurePosixPath
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import ValidationError

from umbel.config.errors import BlobError
from umbel.jobs.blobs import UNKNOWN_TYPE, Blob, BlobStore, BlobTooLarge
from umbel.producers.web.documents import matches
from umbel.producers.web.problems import problem
from umbel.producers.web.service import Service
from umbel.producers.web.uploads import Upload, upload_of

# What a browser may show, and the ending that its name gets. Everything else is a download: the
# bytes are a stranger's, and the type is whatever the address says.
SHOWN_TYPES = {
    "image/jpeg": ".jpg",
    "image/png": ".png",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/avif": ".avif",
    "video/mp4": ".mp4",
}
WRITE_BYTES = 1024**2
READ_ON_BYTES = 64 * 1024**2

Sha256 = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, Query(max_length=255, description="what a saved copy is called")]


def blob_routes(app: Service, max_upload_bytes: int) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", tags=["files"])

    @router.post("/uploads", status_code=201, summary="Store a file", openapi_extra=_ANY_BODY)
    async def upload(request: Request, response: Response) -> Blob:
        """Takes the file as the body, or as the one file of a form.

        The answer is its reference, to be used in messages.
        """
        body = request.stream()
        try:
            file = upload_of(request.headers, body, max_upload_bytes)
            blob = await _stored(app.blobs, file, max_upload_bytes)
        except BlobTooLarge:
            await _read_on(request, body)
            raise
        root = request.scope.get("root_path", "")
        response.headers["Location"] = f"{root}/v1/blobs/{blob.sha256}"
        return blob

    @router.head("/blobs/{sha256}", include_in_schema=False)
    @router.get(
        "/blobs/{sha256}",
        summary="Fetch a file",
        response_class=StreamingResponse,
        responses=_ANY_FILE,
    )
    async def download(
        request: Request, sha256: Sha256, type: str = UNKNOWN_TYPE, name: Name = ""
    ) -> Response:
        """The file, whole or one range of it. `type` is what its reference says it is."""
        blob = await _found(app.blobs, sha256)
        headers = _headers(sha256, type, name)
        if matches(request.headers.get("If-None-Match"), sha256):
            return Response(status_code=304, headers=headers)
        if request.method == "HEAD":  # ranges are GET's alone (RFC 9110, 14.2)
            headers["Content-Length"] = str(blob.size_bytes)
            return Response(headers=headers)
        wanted = _wanted(request, blob)
        start, end = wanted or (0, blob.size_bytes)
        if wanted:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{blob.size_bytes}"
        headers["Content-Length"] = str(end - start)
        chunks = await asyncio.to_thread(app.blobs.chunks, blob, start, end)
        return StreamingResponse(_each(chunks), 206 if wanted else 200, headers)

    return router


_ANY_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}
_ANY_FILE: dict[int | str, dict[str, object]] = {
    200: {"content": {UNKNOWN_TYPE: {}}, "description": "The file."},
    206: {"content": {UNKNOWN_TYPE: {}}, "description": "The range that was asked for."},
}


async def _stored(blobs: BlobStore, upload: Upload, limit_bytes: int) -> Blob:
    writer = await asyncio.to_thread(blobs.writer, limit_bytes)
    try:
        async for piece in _pieces(upload.chunks()):
            await asyncio.to_thread(writer.write, piece)
        media_type = (upload.media_type or "").partition(";")[0].strip().lower()
        return await asyncio.to_thread(writer.finish, media_type)
    except ValidationError as error:
        raise problem(400, "Not a media type", f"Content-Type: {upload.media_type!r}") from error
    finally:
        # Not awaited: this may be a cancellation. Without effect once it is finished.
        asyncio.get_running_loop().run_in_executor(None, writer.abort)


async def _pieces(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """Servers read 64 KiB at a time, and each way to a thread and back costs as much as that."""
    piece = bytearray()
    async for chunk in chunks:
        piece += chunk
        if len(piece) >= WRITE_BYTES:
            yield bytes(piece)
            piece.clear()
    yield bytes(piece)


async def _read_on(request: Request, body: AsyncIterator[bytes]) -> None:
    """A client that is still sending would see a broken connection instead of the answer.

    One that waits to be asked for the body (RFC 9110, 10.1.1) is not.
    """
    if request.headers.get("Expect", "").lower() == "100-continue":
        return
    left = READ_ON_BYTES
    async for chunk in body:
        left -= len(chunk)
        if left < 0:
            return


async def _found(blobs: BlobStore, sha256: str) -> Blob:
    try:
        return await asyncio.to_thread(blobs.find, sha256)
    except BlobError as error:
        if error.__cause__:
            raise  # the store failed; the file may be there
        raise problem(404, "Unknown file", f"there is no file {sha256}") from error


async def _each(chunks: Iterator[bytes]) -> AsyncIterator[bytes]:
    while chunk := await asyncio.to_thread(next, chunks, b""):
        yield chunk


def _headers(sha256: str, media_type: str, name: str) -> dict[str, str]:
    """Such that no file is a page of ours, or a program with a name of the address's choosing."""
    ending = SHOWN_TYPES.get(media_type)
    saved_as = (PurePosixPath(name).stem or sha256[:16]) + ending if ending else sha256[:16]
    disposition = "inline" if ending else "attachment"
    return {
        "Content-Type": media_type if ending else UNKNOWN_TYPE,
        "Content-Disposition": f"{disposition}; filename*=UTF-8''{quote(saved_as, safe='')}",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox",
        "Accept-Ranges": "bytes",
        "ETag": f'"{sha256}"',
        # Not `public`: that lets a shared cache hand out what was asked for with credentials
        # (RFC 9111, 3.5), and who may ask is not known here.
        "Cache-Control": "private, max-age=31536000, immutable",
    }


_RANGE = re.compile(r"bytes=([0-9]{0,18})-([0-9]{0,18})", re.IGNORECASE)


def _wanted(request: Request, blob: Blob) -> tuple[int, int] | None:
    """Start and end of the one range that is asked for (RFC 9110, 14); None is all of it."""
    if request.headers.get("If-Range", f'"{blob.sha256}"') != f'"{blob.sha256}"':
        return None
    match = _RANGE.fullmatch(request.headers.get("Range", "").replace(" ", ""))
    first, last = match.groups() if match else ("", "")
    if not first + last or (first and last and int(last) < int(first)):
        return None  # none, several, or none that is valid
    size = blob.size_bytes
    if first:
        start, end = int(first), min(int(last) + 1, size) if last else size
    else:
        start, end = max(0, size - int(last)), size
    if start >= end:
        headers = {"Content-Range": f"bytes */{size}"}
        raise problem(416, "Range not satisfiable", f"the file has {size} bytes", headers=headers)
    return start, end

"""Files in and out, in pieces: none is ever whole in memory."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Path, Request, Response, UploadFile
from fastapi.responses import StreamingResponse

from umbel.jobs.blobs import Blob, BlobStore, BlobTooLarge
from umbel.producers.web.problems import problem
from umbel.producers.web.service import Service

# What a browser may show. Everything else is a download: the bytes are a stranger's.
SHOWN_TYPES = frozenset(
    {"image/jpeg", "image/png", "image/webp", "image/gif", "image/avif", "video/mp4"}
)
READ_ON_BYTES = 64 * 1024**2

Sha256 = Annotated[str, Path(pattern=r"^[0-9a-f]{64}$")]


def blob_routes(app: Service, max_upload_bytes: int) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix="/v1", tags=["files"])

    @router.post("/uploads", status_code=201, summary="Store a file", openapi_extra=_ANY_BODY)
    async def upload(request: Request, response: Response) -> Blob:
        """Takes the file as the body, or as the one part of a form.

        The answer is its reference, to be used in messages.
        """
        if request.headers.get("content-type", "").startswith("multipart/form-data"):
            chunks, media_type = await _from_form(request)
        else:
            chunks, media_type = request.stream(), request.headers.get("content-type")
        blob = await _stored(app.blobs, chunks, media_type, max_upload_bytes)
        response.headers["Location"] = f"/v1/blobs/{blob.sha256}"
        return blob

    @router.get("/blobs/{sha256}", summary="Fetch a file")
    async def download(
        request: Request, sha256: Sha256, type: str = "application/octet-stream"
    ) -> Response:
        """The file, whole or one range of it. `type` is what its reference says it is."""
        blob = await asyncio.to_thread(app.blobs.find, sha256)
        headers = _download_headers(sha256, type)
        if request.headers.get("If-None-Match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        start, end, status = _range(request.headers.get("Range"), blob.size_bytes)
        headers["Content-Length"] = str(end - start)
        if status == 206:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{blob.size_bytes}"
        body = _chunks(app.blobs, blob, start, end)
        return StreamingResponse(body, status, headers, media_type=headers["Content-Type"])

    return router


_ANY_BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "application/octet-stream": {"schema": {"type": "string", "format": "binary"}},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
        },
    }
}


async def _from_form(request: Request) -> tuple[AsyncIterator[bytes], str | None]:
    form = await request.form(max_files=1)
    files = [value for value in form.values() if not isinstance(value, str)]
    if len(files) != 1:
        raise problem(400, "No file", f"expected one file in the form, got {len(files)}")
    return _parts(files[0]), files[0].content_type  # type: ignore[arg-type]  # Starlette's class


async def _parts(file: UploadFile) -> AsyncIterator[bytes]:
    while chunk := await file.read(1 << 20):
        yield chunk


async def _stored(
    blobs: BlobStore, chunks: AsyncIterator[bytes], media_type: str | None, limit_bytes: int
) -> Blob:
    media_type = (media_type or "").partition(";")[0].strip() or None
    writer = await asyncio.to_thread(blobs.writer, limit_bytes)
    try:
        async for chunk in chunks:
            await asyncio.to_thread(writer.write, chunk)
        return await asyncio.to_thread(writer.finish, media_type)
    except BlobTooLarge as error:
        await _read_on(chunks)
        raise problem(413, "File too large", str(error)) from error
    except ValueError as error:
        raise problem(400, "Not a media type", f"Content-Type: {media_type!r}") from error
    finally:
        writer.abort()  # without effect once it is finished


async def _read_on(chunks: AsyncIterator[bytes]) -> None:
    """A client that is still sending would see a broken connection instead of the answer."""
    left = READ_ON_BYTES
    async for chunk in chunks:
        left -= len(chunk)
        if left < 0:
            return


async def _chunks(blobs: BlobStore, blob: Blob, start: int, end: int) -> AsyncIterator[bytes]:
    chunks = blobs.chunks(blob, start, end)
    while chunk := await asyncio.to_thread(next, chunks, b""):
        yield chunk


def _download_headers(sha256: str, media_type: str) -> dict[str, str]:
    shown = media_type in SHOWN_TYPES
    return {
        "Content-Type": media_type if shown else "application/octet-stream",
        "Content-Disposition": "inline" if shown else f'attachment; filename="{sha256[:16]}"',
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "sandbox",
        "Accept-Ranges": "bytes",
        "ETag": f'"{sha256}"',
        "Cache-Control": "public, max-age=31536000, immutable",
    }


def _range(header: str | None, size_bytes: int) -> tuple[int, int, int]:
    """Start, end and status for a ``Range`` header (RFC 9110, 14.2); several ranges get it all."""
    unit, _, text = (header or "").partition("=")
    if unit.strip() != "bytes" or "," in text:
        return 0, size_bytes, 200
    first, _, last = text.strip().partition("-")
    if not (first + last).isdigit():
        return 0, size_bytes, 200
    if first:
        start, end = int(first), min(int(last) + 1, size_bytes) if last else size_bytes
    else:
        start, end = max(0, size_bytes - int(last)), size_bytes
    if start >= end:
        raise problem(
            416,
            "Range not satisfiable",
            f"the file has {size_bytes} bytes",
            headers={"Content-Range": f"bytes */{size_bytes}"},
        )
    return start, end, 206

"""The file in a request's body, piece by piece: as the body itself, or as a part of a form."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.datastructures import Headers

from umbel.jobs.blobs import BlobTooLarge
from umbel.producers.web.problems import problem

# What a form may hold besides its file.
FORM_OVERHEAD_BYTES = 64 * 1024
# What curl sends when nobody said what the file is.
_SAYS_NOTHING = "application/x-www-form-urlencoded"


class Upload(Protocol):
    """A file on its way in.

    Attributes:
        media_type: as the client says; known once all chunks were read.
    """

    media_type: str | None

    def chunks(self) -> AsyncIterator[bytes]:
        """The file's bytes, once.

        Raises:
            BlobTooLarge: the request has more than a file of the limit could need.
            Problem: 400, it is no form with one file.
        """


def upload_of(headers: Headers, body: AsyncIterator[bytes], limit_bytes: int) -> Upload:
    """The file of a request: its body, or the one file of a form.

    Raises:
        BlobTooLarge: by its ``Content-Length``, before a client that waits for ``100 Continue``
            sends it; the same from `Upload.chunks` where that is not told.
    """
    is_form = headers.get("Content-Type", "").lower().startswith("multipart/form-data")
    announced = headers.get("Content-Length", "")
    overhead_bytes = FORM_OVERHEAD_BYTES if is_form else 0
    if announced.isdecimal() and int(announced) > limit_bytes + overhead_bytes:
        raise BlobTooLarge(limit_bytes)
    media_type, options = parse_options_header(headers.get("Content-Type"))
    if is_form:
        return _FormFile(body, options.get(b"boundary", b""), limit_bytes)
    return _Body(body, media_type.decode("latin-1"))


class _Body:
    def __init__(self, body: AsyncIterator[bytes], media_type: str) -> None:
        self.media_type = media_type if media_type not in {"", _SAYS_NOTHING} else None
        self._body = body

    def chunks(self) -> AsyncIterator[bytes]:
        return self._body


class _FormFile:
    """Callbacks of python-multipart's parser.

    Starlette's own way, ``request.form()``, writes the whole form to a temporary file before
    anybody can say that it is too large.
    """

    def __init__(self, body: AsyncIterator[bytes], boundary: bytes, limit_bytes: int) -> None:
        self.media_type: str | None = None
        self._body, self._boundary, self._limit_bytes = body, boundary, limit_bytes
        self._pieces: list[bytes] = []
        self._files, self._in_file, self._ended = 0, False, False
        self._name, self._value = b"", b""
        self._headers: dict[bytes, bytes] = {}

    async def chunks(self) -> AsyncIterator[bytes]:
        try:
            async for piece in self._parsed():
                yield piece
        except FormParserError as error:
            raise problem(400, "Not a form", f"the form cannot be read: {error}") from error
        if not self._ended:
            raise problem(400, "Not a form", "the form has no end: the upload was cut off")
        if self._files != 1:
            raise problem(400, "Not one file", f"expected one file, got {self._files}")

    async def _parsed(self) -> AsyncIterator[bytes]:
        parser = MultipartParser(
            self._boundary,
            {
                "on_part_begin": self._headers.clear,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_end": self._on_end,
            },
        )
        received_bytes = 0
        async for chunk in self._body:
            received_bytes += len(chunk)
            if received_bytes > self._limit_bytes + FORM_OVERHEAD_BYTES:
                raise BlobTooLarge(self._limit_bytes)
            parser.write(chunk)
            yield b"".join(self._pieces)
            self._pieces.clear()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name, self._value = b"", b""

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition"))
        self._in_file = b"filename" in options
        self._files += self._in_file
        if self._in_file:
            if self._files > 1:
                raise problem(400, "Not one file", "expected one file, got more")
            self.media_type = self._headers.get(b"content-type", b"").decode("latin-1") or None

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._in_file:
            self._pieces.append(data[start:end])

    def _on_end(self) -> None:
        self._ended = True

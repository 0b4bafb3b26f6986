"""Files by reference: a message carries where a file is and what it must be, never its bytes.

The store is any that `obstore` knows (a local directory, S3, GCS, Azure); nothing here ever holds a
whole file in memory. Objects are named after their content, so the same file twice is one object,
and a file that a worker died over is written whole by the next one or not at all.
"""

from __future__ import annotations

import hashlib
import io
import mimetypes
import tempfile
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Any, BinaryIO, Self
from urllib.parse import unquote, urlsplit

from celery import current_app
from pydantic import BaseModel, ConfigDict, Field

from umbel.config.errors import BlobError, SettingsError
from umbel.config.settings import project_directory

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CHUNK_BYTES = 1024 * 1024
UNKNOWN_TYPE = "application/octet-stream"
_LOCAL_HOSTS = {None, "", "localhost", "127.0.0.1", "::1"}


class Blob(BaseModel):
    """A file by reference.

    Attributes:
        uri: where it is, inside the app's blob store.
        size_bytes: its length.
        sha256: of its content, as 64 hexadecimal digits; checked when it is fetched.
        media_type: what its sender says it is; never trusted, see `umbel.media`'s classify.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    uri: Annotated[str, Field(min_length=1, max_length=2048)]
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    media_type: Annotated[str, Field(pattern=r"^[\w.+-]+/[\w.+-]+$", max_length=255)] = UNKNOWN_TYPE

    @classmethod
    def store(cls, source: Path | str | bytes, media_type: str | None = None) -> Blob:
        """Put a file, or some bytes, into the current app's store.

        Args:
            source: a path or the bytes themselves.
            media_type: what it is, by default guessed from the path.

        Raises:
            BlobError: it cannot be read or written.
        """
        return _current_store().put(source, media_type)

    def open(self) -> BinaryIO:
        """A reader of the current app's store, which reads as it goes."""
        return _current_store().open(self)

    def fetch(self, path: Path) -> Path:
        """Copy it to `path`, checked: what is there afterwards has this size and hash.

        Raises:
            BlobError: it is not there, outside the store, or not what it says; `path` is left out.
        """
        return _current_store().fetch(self, path)


def _current_store() -> BlobStore:
    store = getattr(current_app, "blobs", None)
    if not isinstance(store, BlobStore):
        raise BlobError("there is no current Umbel app: make one, or use app.blobs")
    return store


class BlobStore:
    """The files of one app.

    Args:
        url: ``file:///directory``, ``s3://bucket/prefix`` or any other URL of `obstore`.

    Only what is under this URL is ever read: messages come from strangers, and a reference to
    ``/etc/passwd`` is one that anybody can write.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    @classmethod
    def at(cls, url: str | None, broker_url: str) -> Self:
        """The store that is set, else ``.umbel/blobs`` beside the project's file.

        Raises:
            SettingsError: a directory of this machine, and a broker that serves other ones.
        """
        url = url or (project_directory() / ".umbel" / "blobs").as_uri()
        parts = urlsplit(broker_url)
        if url.startswith("file:") and "socket" not in parts.scheme:
            if parts.hostname not in _LOCAL_HOSTS:
                raise SettingsError(
                    f"the broker is on {parts.hostname}, but files are on this machine ({url}), "
                    "where other workers cannot read them: set UMBEL_BLOB_URL to a store that all "
                    "of them reach, s3://bucket/prefix"
                )
        return cls(url)

    def put(self, source: Path | str | bytes, media_type: str | None = None) -> Blob:
        """Store a file or bytes; the same content twice is one object.

        Raises:
            BlobError: it cannot be read or written.
        """
        writer = BlobWriter(self)
        try:
            if isinstance(source, bytes):
                writer.write(source)
            else:
                media_type = media_type or mimetypes.guess_type(str(source))[0]
                with Path(source).open("rb") as file:
                    while chunk := file.read(CHUNK_BYTES):
                        writer.write(chunk)
        except OSError as error:
            writer.abort()
            raise BlobError(f"cannot read {source!r}: {error}") from error
        return writer.finish(media_type)

    def writer(self, limit_bytes: int | None = None) -> BlobWriter:
        """For what arrives in pieces.

        Args:
            limit_bytes: the most that it takes; None for no limit.
        """
        return BlobWriter(self, limit_bytes)

    def open(self, blob: Blob) -> BinaryIO:
        """A reader, which reads as it goes.

        Raises:
            BlobError: it is not there, or outside this store.
        """
        import obstore  # noqa: PLC0415  an extra, and not for every process

        try:
            raw = _Raw(obstore.open_reader(self._objects, self.key(blob)))
        except (OSError, ValueError, obstore.exceptions.BaseError) as error:
            raise BlobError(f"cannot read {blob.uri}: {_first_line(error)}") from error
        return io.BufferedReader(raw, CHUNK_BYTES)

    def chunks(self, blob: Blob, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Its bytes from `start` up to, and without, `end`.

        Raises:
            BlobError: it is not there, or outside this store.
        """
        end = blob.size_bytes if end is None else end
        with self.open(blob) as reader:
            reader.seek(start)
            while start < end:
                chunk = reader.read(min(CHUNK_BYTES, end - start))
                if not chunk:
                    raise BlobError(f"{blob.uri} ends at {start}, before its {end} bytes")
                start += len(chunk)
                yield chunk

    def fetch(self, blob: Blob, path: Path) -> Path:
        """Copy it to `path`, checked.

        Raises:
            BlobError: it is not there, outside this store, or not what it says; nothing is left.
        """
        digest, size = hashlib.sha256(), 0
        try:
            with path.open("wb") as file:
                for chunk in self.chunks(blob):
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
            if digest.hexdigest() != blob.sha256:
                raise BlobError(f"{blob.uri} is not what its reference says: its hash differs")
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        return path

    def find(self, sha256: str, media_type: str = UNKNOWN_TYPE) -> Blob:
        """The object with this content.

        Raises:
            BlobError: there is none.
        """
        import obstore  # noqa: PLC0415

        try:
            size = obstore.head(self._objects, _key(sha256))["size"]
        except (FileNotFoundError, obstore.exceptions.BaseError) as error:
            raise BlobError(f"no object {sha256} in {self.url}") from error
        return Blob(uri=self._uri(sha256), size_bytes=size, sha256=sha256, media_type=media_type)

    def key(self, blob: Blob) -> str:
        """Its name inside this store.

        Raises:
            BlobError: it is outside.
        """
        prefix = self.url + "/"
        key = unquote(blob.uri.removeprefix(prefix))
        if not blob.uri.startswith(prefix) or {"", ".", ".."} & set(key.split("/")):
            raise BlobError(f"{blob.uri} is outside this app's blob store, {self.url}")
        return key

    def _keep(self, file: IO[bytes], sha256: str) -> None:
        import obstore  # noqa: PLC0415

        # Atomic in every store: it is there whole or not at all.
        try:
            obstore.put(self._objects, _key(sha256), file)
        except (OSError, obstore.exceptions.BaseError) as error:
            raise BlobError(f"cannot write to {self.url}: {_first_line(error)}") from error

    def _uri(self, sha256: str) -> str:
        return f"{self.url}/{_key(sha256)}"

    @cached_property
    def _objects(self) -> ObjectStore:
        try:
            from obstore.store import LocalStore, from_url  # noqa: PLC0415
        except ImportError as error:
            raise BlobError("files by reference need: pip install 'umbel[media]'") from error
        try:
            if self.url.startswith("file://"):
                return LocalStore(unquote(urlsplit(self.url).path), mkdir=True)
            return from_url(self.url)
        except Exception as error:
            raise SettingsError(f"UMBEL_BLOB_URL={self.url!r} cannot be used: {error}") from error


class BlobWriter:
    """Takes a file in pieces and stores it under its content's name.

    The pieces wait in a temporary file, because the name is known only at the end.
    """

    def __init__(self, store: BlobStore, limit_bytes: int | None = None) -> None:
        self._store = store
        self._limit_bytes = limit_bytes
        self._digest = hashlib.sha256()
        self._file: Any = tempfile.SpooledTemporaryFile(CHUNK_BYTES)  # noqa: SIM115  closed below
        self.size_bytes = 0

    def write(self, chunk: bytes) -> None:
        """Take the next piece.

        Raises:
            BlobError: it is more than the limit; the writer is closed.
        """
        self.size_bytes += len(chunk)
        if self._limit_bytes is not None and self.size_bytes > self._limit_bytes:
            self.abort()
            raise BlobError(f"larger than {self._limit_bytes} bytes")
        self._digest.update(chunk)
        self._file.write(chunk)

    def finish(self, media_type: str | None = None) -> Blob:
        """Store what was written and return its reference.

        Raises:
            BlobError: the store does not take it.
        """
        sha256 = self._digest.hexdigest()
        try:
            self._file.seek(0)
            self._store._keep(self._file, sha256)
        finally:
            self._file.close()
        return Blob(
            uri=self._store._uri(sha256),
            size_bytes=self.size_bytes,
            sha256=sha256,
            media_type=media_type or UNKNOWN_TYPE,
        )

    def abort(self) -> None:
        """Forget it all."""
        self._file.close()


class _Raw(io.RawIOBase):
    """`obstore`'s reader as Python's own."""

    def __init__(self, reader: Any) -> None:
        self._reader = reader

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = memoryview(self._reader.read(len(buffer)))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        return int(self._reader.seek(offset, whence))

    def tell(self) -> int:
        return int(self._reader.tell())


def _key(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256}"


def _first_line(error: BaseException) -> str:
    return str(error).partition("\n")[0]

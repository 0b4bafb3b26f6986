"""Files by reference: the message carries where a file is and what it holds, never the file.

Messages come from strangers, so a store reads below its own root and nowhere else, and `fetch`
hands out nothing whose size and hash were not checked.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import cache, cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, Self, cast
from urllib.parse import unquote, urlsplit
from uuid import uuid4

from celery import current_app
from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt

from umbel.config.errors import BlobError, SettingsError
from umbel.config.settings import Settings
from umbel.config.sources import project_directory

if TYPE_CHECKING:
    from obstore.store import ObjectStore

CHUNK_BYTES = 4 * 1024 * 1024
UNKNOWN_TYPE = "application/octet-stream"
_SCHEMES = ("file", "s3", "gs", "az")
# Dots may not lead (`..`, and our own `.incoming`); the rest means something to URLs or to obstore.
_SEGMENT = r"[^./\\%?#\x00-\x1f\x7f][^/\\%?#\x00-\x1f\x7f]*"
_KEY = re.compile(rf"{_SEGMENT}(/{_SEGMENT})*")
_INCOMING = ".incoming"
_LOCAL_HOSTS = {None, "", "localhost", "127.0.0.1", "::1"}


class BlobTooLarge(BlobError):
    """More bytes came than the writer may take.

    Attributes:
        limit_bytes: how many it may.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        super().__init__(limit_bytes)

    def __str__(self) -> str:
        return f"the file is larger than the {self.limit_bytes} bytes that are taken"


class Blob(BaseModel):
    """A file by reference, small enough for any message.

    `store`, `open` and `fetch` use the store of the current app (``app.blobs``), or without one
    that of ``UMBEL_BLOB_URL``, by default ``.umbel/blobs`` of the project.
    """

    model_config = ConfigDict(frozen=True)

    uri: Annotated[str, Field(min_length=1, max_length=2048, description="inside the blob store")]
    size_bytes: NonNegativeInt
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    media_type: Annotated[
        str, Field(pattern=r"^[A-Za-z0-9.+_-]+/[A-Za-z0-9.+_-]+$", max_length=255)
    ] = UNKNOWN_TYPE

    @classmethod
    def store(cls, source: Path | bytes, media_type: str | None = None) -> Blob:
        """See `BlobStore.put`."""
        return current_store().put(source, media_type)

    def open(self) -> BinaryIO:
        """See `BlobStore.open`."""
        return current_store().open(self)

    def fetch(self, path: Path) -> Path:
        """See `BlobStore.fetch`."""
        return current_store().fetch(self, path)


def current_store() -> BlobStore:
    """The store of the current app, or that of the settings."""
    of_the_app = getattr(current_app, "blobs", None)
    return of_the_app if isinstance(of_the_app, BlobStore) else _store_at(_url_of_the_settings())


def _url_of_the_settings() -> str:
    return Settings.load().blob_url or (project_directory() / ".umbel" / "blobs").as_uri()


class BlobStore:
    """A directory or bucket of files under their own hash: the same content twice is one object.

    Nothing is opened before the first use. No file is ever whole in memory.

    Args:
        url: the root, ``file:///var/blobs`` or ``s3://bucket/prefix`` (also gs, az). Credentials
            come from the provider's own environment variables, never from here.

    Raises:
        BlobError: the URL is of no kind that is known.
    """

    def __init__(self, url: str) -> None:
        self.url = _root(url)

    @classmethod
    def at(cls, url: str | None, broker_url: str) -> Self:
        """The store that is set, else ``.umbel/blobs`` beside the project's file.

        Raises:
            SettingsError: a directory of this machine, and a broker that serves other ones.
        """
        store = cls(url or (project_directory() / ".umbel" / "blobs").as_uri())
        broker = urlsplit(broker_url)
        remote = "socket" not in broker.scheme and broker.hostname not in _LOCAL_HOSTS
        if store._directory and remote:
            raise SettingsError(
                f"the broker is on {broker.hostname}, but files are on this machine ({store.url}), "
                "where other workers cannot read them: set UMBEL_BLOB_URL to a store that all of "
                "them reach, s3://bucket/prefix"
            )
        return store

    def find(self, sha256: str, media_type: str = UNKNOWN_TYPE) -> Blob:
        """The blob with this content.

        Raises:
            BlobError: there is none.
        """
        key = f"{sha256[:2]}/{sha256}"
        size_bytes = self._size_bytes(key)
        if size_bytes is None:
            raise BlobError(f"no blob {sha256} in {self.url}")
        return Blob(
            uri=f"{self.url}/{key}", size_bytes=size_bytes, sha256=sha256, media_type=media_type
        )

    def put(self, source: Path | bytes, media_type: str | None = None) -> Blob:
        """Store a file; nobody ever sees half of it.

        Args:
            source: a local file, or the content.
            media_type: ``type/subtype``; unknown is application/octet-stream.

        Raises:
            BlobError: it cannot be read or stored.
        """
        with self.writer() as writer:
            for chunk in _chunks_of(source):
                writer.write(chunk)
            return writer.finish(media_type)

    def writer(self, limit_bytes: int | None = None) -> BlobWriter:
        """Store a file that comes in pieces, such as the body of a request.

        Args:
            limit_bytes: the most that it takes; None for no limit.
        """
        return BlobWriter(self, limit_bytes)

    def exists(self, blob: Blob) -> bool:
        """Whether there is a file of this size at the blob's place."""
        return self._size_bytes(self._key(blob)) == blob.size_bytes

    def open(self, blob: Blob) -> BinaryIO:
        """A reader that fetches as it is read, and seeks; the hash is not checked, see `fetch`.

        Raises:
            BlobError: the blob is not in this store, or not of its size.
        """
        read_range = partial(self._range, self._checked(blob))
        return io.BufferedReader(_Reader(read_range, blob.size_bytes), buffer_size=1024 * 1024)

    def chunks(self, blob: Blob, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """The bytes from `start` up to before `end`, in chunks of at most 4 MiB.

        Each chunk is a request of its own: a slow reader outlives every time limit of the store.

        Raises:
            BlobError: at once, when the blob is not there or the range is not inside it.
        """
        end = blob.size_bytes if end is None else end
        if not 0 <= start <= end <= blob.size_bytes:
            raise BlobError(f"bytes {start} to {end} of a blob of {blob.size_bytes} bytes")
        return self._ranges(self._checked(blob), start, end)

    def fetch(self, blob: Blob, path: Path) -> Path:
        """Copy a blob to `path`, and return it; size and hash are those that the blob says.

        Raises:
            BlobError: it is not there, or is something else; there is no file then.
        """
        part = path.with_name(f"{path.name}.{uuid4().hex}.part")
        try:
            with _explained(f"fetching {blob.uri} to {path}"):
                self._copy(blob, part)
                return part.replace(path)
        finally:
            part.unlink(missing_ok=True)

    def _copy(self, blob: Blob, path: Path) -> None:
        digest = hashlib.sha256()
        with path.open("xb") as file:
            for chunk in self.chunks(blob):
                digest.update(chunk)
                file.write(chunk)
        if digest.hexdigest() != blob.sha256:
            raise BlobError(
                f"{blob.uri} has the hash {digest.hexdigest()}; the blob says {blob.sha256}"
            )

    def _key(self, blob: Blob) -> str:
        key = blob.uri.removeprefix(f"{self.url}/")
        if key == blob.uri or not _KEY.fullmatch(key):
            raise BlobError(f"{blob.uri!r} is not inside the blob store {self.url}; it is not read")
        return key

    def _checked(self, blob: Blob) -> str:
        """The key of a blob that is there with its size."""
        size_bytes = self._size_bytes(key := self._key(blob))
        if size_bytes is None:
            raise BlobError(f"{blob.uri} is not there")
        if size_bytes != blob.size_bytes:
            raise BlobError(f"{blob.uri} has {size_bytes} bytes; the blob says {blob.size_bytes}")
        return key

    def _size_bytes(self, key: str) -> int | None:
        with _explained(f"looking up {self.url}/{key}"):
            try:
                return int(_obstore().head(self._objects, key)["size"])
            except FileNotFoundError:
                return None

    def _ranges(self, key: str, start: int, end: int) -> Iterator[bytes]:
        for at in range(start, end, CHUNK_BYTES):
            yield self._range(key, at, min(at + CHUNK_BYTES, end))

    def _range(self, key: str, start: int, end: int) -> bytes:
        with _explained(f"reading {self.url}/{key}"):
            return bytes(_obstore().get_range(self._objects, key, start=start, end=end))

    def _promote(self, path: Path, key: str, size_bytes: int) -> None:
        """Make a complete local file the object `key`, at once."""
        if self._size_bytes(key) == size_bytes:
            return
        with _explained(f"storing {self.url}/{key}"):
            if self._directory:
                _obstore().rename(self._objects, f"{_INCOMING}/{path.name}", key)
            else:
                _obstore().put(self._objects, key, path)

    @cached_property
    def _directory(self) -> Path | None:
        """Of a local store."""
        url = urlsplit(self.url)
        return Path(unquote(url.path)) if url.scheme == "file" else None

    @cached_property
    def _objects(self) -> ObjectStore:
        from obstore.store import LocalStore, from_url  # noqa: PLC0415

        if self._directory:
            return LocalStore(self._directory, mkdir=True)
        patience = {"max_retries": 5, "retry_timeout": timedelta(seconds=30)}
        return from_url(self.url, retry_config=cast(Any, patience))


class BlobWriter:
    """Takes a file in pieces and hashes it on the way; what is not finished is thrown away.

    The pieces go to a local file first: into the store's own directory, or for a remote store to
    the directory of temporary files (``TMPDIR``). Not for several threads at once.

        with store.writer(limit_bytes=10_000_000) as writer:
            writer.write(chunk)
            blob = writer.finish("image/jpeg")
    """

    def __init__(self, store: BlobStore, limit_bytes: int | None = None) -> None:
        self.size_bytes = 0
        self._store = store
        self._limit_bytes = limit_bytes
        self._digest = hashlib.sha256()
        with _explained(f"storing a file in {store.url}"):
            self._path, self._file = _incoming_file(store._directory)

    def write(self, chunk: bytes) -> None:
        """Add to the end.

        Raises:
            BlobTooLarge: beyond the limit; all of it is thrown away.
            BlobError: it cannot be written (the disk is full), likewise.
        """
        self.size_bytes += len(chunk)
        if self._limit_bytes is not None and self.size_bytes > self._limit_bytes:
            self.abort()
            raise BlobTooLarge(self._limit_bytes)
        self._digest.update(chunk)
        with _explained(f"storing a file in {self._store.url}"):
            self._file.write(chunk)

    def finish(self, media_type: str | None = None) -> Blob:
        """Make it a blob, on disk before anyone can see it.

        Raises:
            BlobError: it could not be stored, or was aborted.
            pydantic.ValidationError: this is no media type.
        """
        sha256 = self._digest.hexdigest()
        key = f"{sha256[:2]}/{sha256}"
        blob = Blob(
            uri=f"{self._store.url}/{key}",
            size_bytes=self.size_bytes,
            sha256=sha256,
            media_type=media_type or UNKNOWN_TYPE,
        )
        with self, _explained(f"storing {blob.uri}"):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._store._promote(self._path, key, self.size_bytes)
        return blob

    def abort(self) -> None:
        """Throw away what was written; without effect once it is finished."""
        with suppress(OSError):  # a full disk says so again when the buffer's rest is written
            self._file.close()
        self._path.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.abort()


class _Reader(io.RawIOBase):
    """A blob as a raw stream; `io.BufferedReader` makes few large requests of it."""

    def __init__(self, read_range: Callable[[int, int], bytes], size_bytes: int) -> None:
        self._read_range, self._size_bytes, self._at = read_range, size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        end = min(self._at + min(len(buffer), CHUNK_BYTES), self._size_bytes)
        read = self._read_range(self._at, end) if self._at < end else b""
        buffer[: len(read)] = read
        self._at += len(read)
        return len(read)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        start = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        self._at = max(0, start + offset)
        return self._at


def _root(url: str) -> str:
    """The URL in its one form, so that what is below it can be told by comparing strings."""
    parts = urlsplit(url)
    extra = parts.query or parts.fragment or "@" in parts.netloc
    if parts.scheme in _SCHEMES and not extra:
        if parts.scheme != "file" and parts.netloc:
            return url.rstrip("/")
        if parts.scheme == "file" and parts.netloc in ("", "localhost") and len(parts.path) > 1:
            return Path(unquote(parts.path)).resolve().as_uri()
    raise BlobError(
        f"blob_url is {url!r}; expected file:///directory, {'://…, '.join(_SCHEMES[1:])}://…"
    )


def _incoming_file(directory: Path | None) -> tuple[Path, BinaryIO]:
    """A new file beside the blobs, so that it only needs renaming; for a remote store anywhere."""
    if directory:
        (directory / _INCOMING).mkdir(parents=True, exist_ok=True)
        path, mode = directory / _INCOMING / uuid4().hex, 0o666
    else:
        path, mode = Path(tempfile.gettempdir()) / f"umbel-{uuid4().hex}", 0o600
    return path, os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb")


def _chunks_of(source: Path | bytes) -> Iterator[bytes]:
    if isinstance(source, bytes):
        yield source
        return
    with _explained(f"reading {source}"):
        file = source.open("rb")
    with file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


@cache
def _store_at(url: str) -> BlobStore:
    return BlobStore(url)


@cache
def _pid_of_first_use() -> int:
    return os.getpid()


def _obstore() -> Any:
    try:
        import obstore  # noqa: PLC0415
    except ImportError as error:
        raise BlobError("files by reference need obstore: pip install umbel[media]") from error
    # Measured on obstore 0.12: after a fork its calls wait forever for threads that only the
    # parent has. An error is better than a worker that hangs.
    if _pid_of_first_use() != os.getpid():
        raise BlobError(
            "a blob store was used before this process was forked; obstore cannot go on here. "
            "Use blobs only after the fork (in jobs, not at import or worker_init)"
        )
    return obstore


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns the failures of files and of obstore into a `BlobError`."""
    try:
        yield
    except (OSError, ValueError, NotImplementedError, _obstore().exceptions.BaseError) as error:
        first_line = str(error).partition("\n")[0]
        raise BlobError(f"{what}: {first_line or type(error).__name__}") from error

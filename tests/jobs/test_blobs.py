"""Files by reference: whole or not there, checked when fetched, never from outside the store."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import ValidationError

from umbel.config.errors import BlobError
from umbel.jobs.blobs import CHUNK_BYTES, Blob, BlobStore, BlobTooLarge

CONTENT = b"an umbel has many stalks" * 1000


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """The address of a server that speaks S3, with a bucket."""
    server_module = pytest.importorskip("moto.server", reason="pip install 'moto[server]'")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    with urllib.request.urlopen(urllib.request.Request(f"{address}/umbel", method="PUT")):
        pass
    yield address
    server.stop()


@pytest.fixture(params=["directory", "s3"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> BlobStore:
    """One of each kind."""
    if request.param == "directory":
        return BlobStore((tmp_path / "my blobs").as_uri())
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("bucket"))
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    return BlobStore(f"s3://umbel/{tmp_path.name}")


@pytest.fixture
def directory(tmp_path: Path) -> BlobStore:
    """A local store."""
    return BlobStore((tmp_path / "blobs").as_uri())


def files_below(path: Path) -> list[Path]:
    """All of them, hidden ones included."""
    return [each for each in path.rglob("*") if each.is_file()]


def test_what_is_stored_comes_back(store: BlobStore, tmp_path: Path) -> None:
    """From bytes and from a file; size, hash and place are what the blob says."""
    blob = store.put(CONTENT, "text/plain")
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert blob.uri == f"{store.url}/{digest[:2]}/{digest}"
    assert (blob.size_bytes, blob.sha256) == (len(CONTENT), digest)
    assert store.exists(blob)
    path = store.fetch(blob, tmp_path / "copy")
    assert path.read_bytes() == CONTENT
    assert store.put(path, "text/plain") == blob


def test_larger_than_a_chunk(store: BlobStore, tmp_path: Path) -> None:
    """In several requests (a multipart upload on S3), and every byte of it."""
    content = hashlib.sha256(b"x").digest() * (3 * CHUNK_BYTES // 32) + b"end"
    blob = store.put(content)
    assert store.fetch(blob, tmp_path / "copy").read_bytes() == content
    assert max(map(len, store.chunks(blob))) <= CHUNK_BYTES


def test_an_empty_file(store: BlobStore, tmp_path: Path) -> None:
    """Is a file."""
    blob = store.put(b"")
    assert store.fetch(blob, tmp_path / "copy").read_bytes() == b""
    with store.open(blob) as file:
        assert file.read() == b""


def test_a_reader_seeks(store: BlobStore) -> None:
    """As any file does."""
    blob = store.put(CONTENT)
    with store.open(blob) as file:
        assert file.read(8) == CONTENT[:8]
        file.seek(-5, 2)
        assert file.read() == CONTENT[-5:]


def test_a_range(store: BlobStore) -> None:
    """As HTTP asks for it: up to, but without, the end."""
    blob = store.put(CONTENT)
    assert b"".join(store.chunks(blob, 3, 8)) == CONTENT[3:8]
    with pytest.raises(BlobError, match="bytes 0 to"):
        store.chunks(blob, 0, len(CONTENT) + 1)


def test_the_same_content_is_one_object(directory: BlobStore, tmp_path: Path) -> None:
    """And nothing else is left in the directory."""
    first, second = directory.put(CONTENT, "text/plain"), directory.put(CONTENT, "image/png")
    assert first.uri == second.uri
    assert len(files_below(tmp_path / "blobs")) == 1


@pytest.mark.parametrize(
    "uri",
    [
        "file:///etc/passwd",
        "http://169.254.169.254/latest",
        "s3://another/ab/abc",
        "{root}/../outside",
        "{root}/ab/../../outside",
        "{root}/%2e%2e/outside",
        "{root}//etc/passwd",
        "{root}/.incoming/half",
        "{root}-other/file",
        "{root}",
        "{root}/",
        "outside",
    ],
)
def test_nothing_outside_is_read(directory: BlobStore, tmp_path: Path, uri: str) -> None:
    """Messages come from strangers."""
    secret = b"secret"
    (tmp_path / "outside").write_bytes(secret)
    digest = hashlib.sha256(secret).hexdigest()
    blob = Blob(uri=uri.format(root=directory.url), size_bytes=6, sha256=digest)
    with pytest.raises(BlobError, match="not inside the blob store"):
        directory.open(blob)
    with pytest.raises(BlobError, match="not inside the blob store"):
        directory.fetch(blob, tmp_path / "copy")
    with pytest.raises(BlobError, match="not inside the blob store"):
        directory.exists(blob)
    assert not (tmp_path / "copy").exists()


def test_another_content_leaves_no_file(store: BlobStore, tmp_path: Path) -> None:
    """A hash or a size that does not fit is an error, and nothing is at the place."""
    blob = store.put(CONTENT)
    (tmp_path / "target").mkdir()
    for lie in ({"sha256": "0" * 64}, {"size_bytes": 5}, {"size_bytes": 10**12}):
        with pytest.raises(BlobError, match="the blob says"):
            store.fetch(blob.model_copy(update=lie), tmp_path / "target" / "copy")
    assert files_below(tmp_path / "target") == []


def test_not_there(store: BlobStore, tmp_path: Path) -> None:
    """Says which."""
    blob = Blob(uri=f"{store.url}/00/none", size_bytes=1, sha256="0" * 64)
    assert not store.exists(blob)
    with pytest.raises(BlobError, match="00/none is not there"):
        store.fetch(blob, tmp_path / "copy")


def test_in_pieces_with_a_limit(directory: BlobStore, tmp_path: Path) -> None:
    """One byte too many, and all of it is thrown away."""
    with directory.writer(limit_bytes=10) as writer:
        writer.write(b"12345")
        writer.write(b"67890")
        assert writer.finish("text/plain").size_bytes == 10
    with directory.writer(limit_bytes=10) as writer:
        writer.write(b"1234567890")
        with pytest.raises(BlobTooLarge, match="10 bytes") as caught:
            writer.write(b"1")
    assert caught.value.limit_bytes == 10
    assert len(files_below(tmp_path / "blobs")) == 1


def test_what_is_not_finished_is_thrown_away(directory: BlobStore, tmp_path: Path) -> None:
    """Whether aborted, left by an error, or of no media type."""
    with directory.writer() as writer:
        writer.write(CONTENT)
    with pytest.raises(BlobError):
        writer.finish()
    with directory.writer() as writer:
        writer.write(CONTENT)
        with pytest.raises(ValidationError):
            writer.finish("no media type")
    with pytest.raises(BlobError, match="reading"):
        directory.put(tmp_path / "nothing")
    assert files_below(tmp_path / "blobs") == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full")
def test_a_full_disk(directory: BlobStore, tmp_path: Path) -> None:
    """Is a `BlobError`; no half of a file becomes a blob."""
    writer = directory.writer()
    writer._file.close()
    writer._file = Path("/dev/full").open("wb")  # noqa: SIM115  the writer closes it
    writer.write(b"some")
    with pytest.raises(BlobError, match="No space left"):
        writer.finish()
    assert files_below(tmp_path / "blobs") == []


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "https://host/x", "file://host/x", "file:///", "s3://", "s3://k:s@b/p"]
)
def test_an_unknown_kind_of_store(url: str) -> None:
    """Is refused when it is named."""
    with pytest.raises(BlobError, match="expected file:///directory"):
        BlobStore(url)


@pytest.mark.parametrize(
    "wrong", [{"uri": ""}, {"size_bytes": -1}, {"sha256": "A" * 64}, {"media_type": "text"}]
)
def test_the_schema_holds(wrong: dict[str, object]) -> None:
    """A message with a blob that cannot be one is refused before anything is read."""
    right = {"uri": "s3://b/k", "size_bytes": 1, "sha256": "a" * 64, "media_type": "a/b"}
    assert Blob.model_validate(right)
    with pytest.raises(ValidationError):
        Blob.model_validate(right | wrong)


def child(code: str, *arguments: object) -> str:
    """What a program prints."""
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_store_of_the_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`Blob.store` and its kin need no app: `UMBEL_BLOB_URL` names the place."""
    monkeypatch.setenv("UMBEL_BLOB_URL", (tmp_path / "here").as_uri())
    code = "from umbel.jobs.blobs import Blob; b = Blob.store(b'x'); print(b.uri, b.open().read())"
    assert (tmp_path / "here").as_uri() in child(code)


def test_a_fork_after_use_is_an_error_and_no_hang(directory: BlobStore) -> None:
    """obstore's threads stay in the parent; its calls would wait for them forever."""
    code = """
import os, sys
from umbel.config.errors import BlobError
from umbel.jobs.blobs import BlobStore
store = BlobStore(sys.argv[1])
store.put(b"x")
if os.fork() == 0:
    try:
        store.put(b"y")
    except BlobError as error:
        print(error, flush=True)
    os._exit(0)
os.wait()
"""
    assert "before this process was forked" in child(code, directory.url)


def test_memory_does_not_grow_with_the_file(directory: BlobStore, tmp_path: Path) -> None:
    """256 MB in and out, within 60 MB."""
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(256 * 1024 * 1024)
    code = """
import json, resource, sys
from pathlib import Path
from umbel.jobs.blobs import BlobStore
def peak_kb(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
store = BlobStore(sys.argv[1])
store.fetch(store.put(b"small"), Path(sys.argv[3]))
before = peak_kb()
store.fetch(store.put(Path(sys.argv[2])), Path(sys.argv[3]))
print(json.dumps(peak_kb() - before))
"""
    assert json.loads(child(code, directory.url, large, tmp_path / "copy")) < 60_000

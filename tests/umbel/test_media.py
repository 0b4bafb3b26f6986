"""The media app with real workers: hostile files are failed jobs, and cancel reaches FFmpeg."""

from __future__ import annotations

import importlib
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from struct import pack

import psutil
import pytest
from support.process import alive, eventually

from umbel import JobCancelled, JobFailed, Umbel, media
from umbel.jobs.media.contracts import ClassifyContent, Kind, ResizeImage, TranscodeVideo
from umbel.jobs.media.ffmpeg import find_ffmpeg


def png(width: int, height: int) -> bytes:
    """A white picture of one bit a pixel, which packs to next to nothing."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    header = pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    packer = zlib.compressobj(9)
    row = b"\0" + b"\xff" * ((width + 7) // 8)
    rows = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"></svg>'
TEXT = b"This is a text and nothing else.\n" * 20
FFCONCAT = b"ffconcat version 1.0\nfile /etc/passwd\n"


on_both = pytest.mark.brokers("valkey", "rabbitmq")


@pytest.fixture
def app(broker, app_dir, monkeypatch) -> Iterator[Umbel]:
    """`umbel.media`, imported anew on the test's own broker and blob store."""
    monkeypatch.setenv("UMBEL_BROKER_URL", broker.url)
    monkeypatch.setenv("UMBEL_CONSUMER_TIMEOUT_S", "86400")  # as an operator of RabbitMQ has to
    monkeypatch.setenv("UMBEL_BLOB_URL", (app_dir / "blobs").as_uri())
    fresh = importlib.reload(media)
    yield fresh.app
    fresh.app.close()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(png(30_000, 30_000), "image.bomb: 30000 x 30000 = 900 mega", id="bomb"),
        pytest.param(png(900, 900)[:200], "image.damaged", id="truncated"),
        pytest.param(SVG, "image.unreadable", id="svg"),
        pytest.param(b"", "image.unreadable: an empty file", id="empty"),
        pytest.param(TEXT, "image.unreadable: not a picture", id="text"),
    ],
)
def test_a_hostile_picture_is_a_failed_job(app, start_worker, data, reason):
    """Within seconds, with its reason, once, and without taking memory."""
    worker = start_worker("umbel.media", queues=["images"])
    blob = app.blobs.put(data, "image/jpeg")
    began = time.monotonic()
    with pytest.raises(JobFailed, match=reason):
        media.resize.request(ResizeImage(source=blob, widths=[100])).result(30)
    assert time.monotonic() - began < 15
    assert app.dead_letters.count() == 1
    [child] = worker.children()
    assert child.memory_info().rss < 400 * 1024**2


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="empty"),
        pytest.param(TEXT, id="text"),
        pytest.param(FFCONCAT, id="ffconcat"),
        pytest.param(png(90, 90), id="a picture"),
    ],
)
def test_a_hostile_video_is_a_failed_job(app, start_worker, data):
    """The same for videos; a list of files opens none of them."""
    start_worker("umbel.media", queues=["videos"])
    blob = app.blobs.put(data, "video/mp4")
    with pytest.raises(JobFailed, match=r"MediaError: video\."):
        media.transcode.request(TranscodeVideo(source=blob)).result(30)
    assert app.dead_letters.count() == 1


@on_both
def test_a_reference_to_elsewhere_is_not_followed(app, start_worker):
    """A message comes from anybody; the store reads only what is inside it."""
    start_worker("umbel.media", queues=["classification"])
    blob = app.blobs.put(TEXT).model_copy(update={"uri": "file:///etc/passwd"})
    handle = media.classify.request(ClassifyContent(source=blob))
    eventually(lambda: handle.state() == "retrying" or handle.state().final)
    assert "is not inside the blob store" in (handle.record().error or "")
    handle.cancel()


@on_both
def test_content_is_told_by_its_bytes(app, start_worker):
    """Whatever the type claims."""
    start_worker("umbel.media", queues=["classification"])
    for data, kind in ((TEXT, Kind.TEXT), (png(64, 64), Kind.IMAGE)):
        blob = app.blobs.put(data, "video/mp4")
        assert media.classify.request(ClassifyContent(source=blob)).result(30).kind is kind


@on_both
def test_cancelling_a_video_kills_ffmpeg(app, start_worker, tmp_path):
    """The handle's cancel reaches the process that does the work."""
    source = long_video(tmp_path)
    worker = start_worker("umbel.media", queues=["videos"])
    slow = TranscodeVideo(source=app.blobs.put(source), preset="slow", crf=0)
    handle = media.transcode.request(slow)

    def ffmpegs() -> list[psutil.Process]:
        below = psutil.Process(worker.pid).children(recursive=True)
        return [process for process in below if "ffmpeg" in process.name() and alive(process)]

    eventually(ffmpegs, 30)
    eventually(lambda: handle.progress() and handle.progress().done > 0, 30)
    handle.cancel()
    with pytest.raises(JobCancelled):
        handle.result(10)
    eventually(lambda: not ffmpegs(), 5)


def long_video(directory: Path) -> Path:
    """Two minutes of moving noise, made quickly."""
    path = directory / "long.mp4"
    scene = "testsrc2=size=1280x720:rate=25:duration=60"
    subprocess.run(
        [find_ffmpeg(), "-v", "error", "-f", "lavfi", "-i", scene, "-preset", "ultrafast", path],
        check=True,
    )
    return path

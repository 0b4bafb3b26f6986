"""The media service: ``celery -A umbel.media worker``.

Three work queues, so that a long video never holds up a picture: ``classification``, ``images``
and ``videos``. Files travel by reference, see `umbel.Blob`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from umbel.app import Umbel
from umbel.jobs.blobs import Blob
from umbel.jobs.context import JobContext
from umbel.jobs.media import classification, images, videos
from umbel.jobs.media.contracts import (
    Classification,
    ClassifyContent,
    Rendition,
    Renditions,
    ResizeImage,
    TranscodeVideo,
    Video,
)
from umbel.jobs.media.errors import MediaError
from umbel.jobs.retry import Retry

if TYPE_CHECKING:
    from fastapi import FastAPI

app = Umbel("media")

# A store that does not answer may answer later; a file that is refused stays refused.
_RETRY = Retry(immediate=1, delays_s=[5, 30], give_up_on=(MediaError,))


@app.job(queue="classification", retry=_RETRY, timeout_s=60)
def classify(message: ClassifyContent) -> Classification:
    """Say what a file is, by its bytes and never by its name."""
    with _fetched(message.source) as source:
        return classification.classify(source)


@app.job(queue="images", retry=_RETRY, timeout_s=300)
def resize(message: ResizeImage, context: JobContext) -> Renditions:
    """Make smaller copies of a picture."""
    with _fetched(message.source) as source:
        copies = images.resize(
            source,
            source.parent,
            widths=message.widths,
            formats=message.formats,
            quality=message.quality,
            progress=context.progress,
        )
        return Renditions(
            files=[
                Rendition(
                    file=Blob.store(copy.path, f"image/{copy.format}"),
                    format=copy.format,
                    width=copy.width,
                    height=copy.height,
                )
                for copy in copies
            ]
        )


@app.job(queue="videos", retry=_RETRY, timeout_s=6 * 3600)
def transcode(message: TranscodeVideo, context: JobContext) -> Video:
    """Make an MP4 that plays everywhere."""
    with _fetched(message.source) as source:
        target = source.parent / "output.mp4"
        facts = videos.transcode(
            source,
            target,
            height=message.height,
            preset=message.preset,
            crf=message.crf,
            audio_kbps=message.audio_kbps,
            progress=context.progress,
            cancelled=lambda: context.cancelled,
        )
        return Video(
            file=Blob.store(target, "video/mp4"),
            duration_s=facts.duration_s,
            width=facts.width,
            height=facts.height,
            frames=facts.frames,
            video_codec=facts.video_codec,
            audio_codec=facts.audio_codec,
        )


def create_web() -> FastAPI:
    """The web service: ``uvicorn --factory umbel.media:create_web``."""
    from umbel.producers.web import create_app  # noqa: PLC0415  a worker needs no web server

    web: FastAPI = create_app(app, expose=[classify, resize, transcode])
    return web


@contextmanager
def _fetched(source: Blob) -> Iterator[Path]:
    """The file under a name of our choosing, alone in a private directory."""
    with TemporaryDirectory(prefix="umbel-media-") as directory:
        yield source.fetch(Path(directory) / "source")

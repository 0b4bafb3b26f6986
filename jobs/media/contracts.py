"""The messages of the media service, and what comes back."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from umbel.jobs.blobs import Blob
from umbel.jobs.contracts import Message

LARGEST_SIDE = 16_384

ImageFormat = Literal["jpeg", "webp"]
Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow"]


class Kind(StrEnum):
    """What a file is, roughly: which job is for it."""

    IMAGE = "image"
    VIDEO = "video"
    AUDIO = "audio"
    TEXT = "text"
    DOCUMENT = "document"
    ARCHIVE = "archive"
    OTHER = "other"


def _each_once(values: list[int]) -> list[int]:
    if len(set(values)) < len(values):
        raise ValueError("each width once")
    return values


def _even(value: int) -> int:
    if value % 2:
        raise ValueError("an even number: H.264 stores colour for pairs of lines")
    return value


Width = Annotated[int, Field(ge=1, le=LARGEST_SIDE)]


class ClassifyContent(Message, name="content.classify", version=1):
    """Say what a file is, by its bytes and never by its name.

    Attributes:
        source: the file.
    """

    source: Blob


class Classification(Message, name="content.classified", version=1):
    """What a file is.

    Attributes:
        label: the content type's short name, ``"jpeg"``.
        media_type: likewise, ``"image/jpeg"``.
        kind: which job is for it.
        confidence: of the model, from 0 to 1.
    """

    label: str
    media_type: str
    kind: Kind
    confidence: Annotated[float, Field(ge=0, le=1)]


class ResizeImage(Message, name="image.resize", version=1):
    """Make smaller copies of a picture: upright, without metadata, never larger than it is.

    Attributes:
        source: the picture: JPEG, PNG, WebP, GIF (its first frame), TIFF or AVIF.
        widths: of the copies, in pixels, each once.
        formats: every copy is made in each of them.
        quality: from 1 to 100.
    """

    source: Blob
    widths: Annotated[list[Width], Field(min_length=1, max_length=10), AfterValidator(_each_once)]
    formats: Annotated[list[ImageFormat], Field(min_length=1, max_length=2)] = Field(
        default=["jpeg"]
    )
    quality: Annotated[int, Field(ge=1, le=100)] = 80


class Rendition(BaseModel):
    """One copy of a picture.

    Attributes:
        file: the copy.
        format: its format.
        width: in pixels; less than asked for where the picture is smaller.
        height: likewise.
    """

    file: Blob
    format: ImageFormat
    width: int
    height: int


class Renditions(Message, name="image.renditions", version=1):
    """The copies of a picture, the widest first."""

    files: list[Rendition]


class TranscodeVideo(Message, name="video.transcode", version=1):
    """Make an MP4 that plays everywhere: H.264 and AAC, its index at the front.

    Attributes:
        source: the video.
        height: at most this many lines, even; None keeps them. Never enlarged.
        preset: x264's, from fast to small.
        crf: x264's constant rate factor, from 0 (lossless) to 51.
        audio_kbps: of the sound.
    """

    source: Blob
    height: Annotated[int, Field(ge=2, le=LARGEST_SIDE), AfterValidator(_even)] | None = None
    preset: Preset = "veryfast"
    crf: Annotated[int, Field(ge=0, le=51)] = 23
    audio_kbps: Annotated[int, Field(ge=16, le=512)] = 128


class Video(Message, name="video.transcoded", version=1):
    """A video that was made and checked.

    Attributes:
        file: the MP4.
        duration_s: its length.
        width: in pixels, upright.
        height: likewise.
        frames: how many pictures it has.
        video_codec: as FFmpeg names it.
        audio_codec: likewise; None without sound.
    """

    file: Blob
    duration_s: float
    width: int
    height: int
    frames: int
    video_codec: str
    audio_codec: str | None

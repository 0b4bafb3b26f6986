"""What a video holds, found by decoding its first picture: a program of its own.

PyAV runs a stranger's file through FFmpeg's libraries, so it runs in a short-lived process that
may crash alone: ``python -m umbel.jobs.media.probe FILE LIMIT_PIXELS`` prints one line of JSON.
Importing this module imports none of that.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from typing import Any

from umbel.jobs.media.errors import MediaError
from umbel.jobs.media.ffmpeg import FORMATS, PROTOCOLS

_MICROSECONDS = 1_000_000


@dataclass(frozen=True)
class Facts:
    """What a video holds.

    Attributes:
        format: FFmpeg's name of the container, ``"mov,mp4,m4a,3gp,3g2,mj2"``.
        duration_s: its length as the container says; None where it does not.
        width: in pixels, upright.
        height: likewise.
        square: whether its pixels are.
        frames: how many pictures the container says that it shows; 0 where it does not.
        interlaced: whether it is made of fields: each may count as one of the `frames`.
        rate: pictures per second, on average; 0 where unknown.
        video_index: which of the streams is the video.
        video_codec: as FFmpeg names it.
        audio_codec: likewise; None without sound.
        audio_channels: 0 without sound.
    """

    format: str
    duration_s: float | None
    width: int
    height: int
    square: bool
    frames: int
    interlaced: bool
    rate: float
    video_index: int
    video_codec: str
    audio_codec: str | None
    audio_channels: int


def look(path: str, limit_pixels: int) -> Facts:
    """Open a video and decode its first picture, which alone says how it is rotated.

    Raises:
        MediaError: no video, or one with pictures that are too large.
    """
    try:
        import av  # noqa: PLC0415  its libraries belong into this process alone
    except ImportError as error:
        raise MediaError("video.missing", "videos need: pip install 'umbel[media]'") from error
    options = {"protocol_whitelist": PROTOCOLS, "format_whitelist": FORMATS}
    try:
        with av.open(f"file:{path}", options=options) as container:
            video = _video_of(container)
            _check_pixels(video.width, video.height, limit_pixels)
            return _facts(container, video, next(container.decode(video)), limit_pixels)
    except (av.FFmpegError, StopIteration) as error:
        raise MediaError("video.unreadable", f"not a video: {_why(error)}") from error


def _video_of(container: Any) -> Any:
    for stream in container.streams.video:
        if not stream.disposition & stream.disposition.attached_pic:  # the cover of a song
            return _decodable(stream, "pictures")
    raise MediaError("video.none", "there is no video in it")


def _decodable(stream: Any, what: str) -> Any:
    if stream.codec_context is None:
        raise MediaError("video.unreadable", f"not a video: the codec of its {what} is unknown")
    return stream


def _check_pixels(width: int, height: int, limit: int) -> None:
    if width * height > limit:
        raise MediaError(
            "video.bomb",
            f"{width} x {height} = {width * height / 1e6:.0f} megapixels; "
            f"the limit is {limit / 1e6:.0f}",
        )


def _facts(container: Any, video: Any, frame: Any, limit_pixels: int) -> Facts:
    _check_pixels(frame.width, frame.height, limit_pixels)
    sides = (frame.width, frame.height)
    width, height = reversed(sides) if frame.rotation % 180 else sides
    audio = next((_decodable(stream, "sound") for stream in container.streams.audio), None)
    return Facts(
        format=container.format.name,
        duration_s=container.duration / _MICROSECONDS if container.duration else None,
        width=width,
        height=height,
        square=video.sample_aspect_ratio in (None, 0, 1),
        frames=_shown(container, video),
        interlaced=frame.interlaced_frame,
        rate=float(video.average_rate or 0),
        video_index=video.index,
        video_codec=video.codec_context.name,
        audio_codec=audio.codec_context.name if audio else None,
        audio_channels=audio.codec_context.channels if audio else 0,
    )


def _shown(container: Any, video: Any) -> int:
    """How many pictures an MP4 shows: one that was trimmed without encoding holds more.

    Its edit list (ISO 14496-12, 8.6.6) hides those before the cut. The index of other containers
    is not whole, nor is that of an MP4 in fragments, which says 0.
    """
    entries = getattr(video, "index_entries", None)  # since PyAV 17
    if entries is None or not video.frames or not container.format.name.startswith("mov"):
        return int(video.frames)
    return sum(not entry.is_discard for entry in entries)


def _why(error: Exception) -> str:
    return getattr(error, "strerror", None) or "no picture could be decoded"


def main(path: str, limit_pixels: str) -> None:
    """Print the facts, or why there are none."""
    try:
        answer: dict[str, Any] = {"facts": asdict(look(path, int(limit_pixels)))}
    except MediaError as error:
        answer = {"refused": [error.code, error.problem]}
    print(json.dumps(answer))


if __name__ == "__main__":
    main(*sys.argv[1:])

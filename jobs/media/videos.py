"""Videos that play everywhere: H.264 and AAC in an MP4, made by FFmpeg and checked before use."""

from __future__ import annotations

import json
import signal
import struct
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from umbel.jobs.media.contracts import Preset
from umbel.jobs.media.errors import MediaError
from umbel.jobs.media.ffmpeg import (
    FORMATS,
    PROTOCOLS,
    Limits,
    ToolFailed,
    find_ffmpeg,
    run,
)
from umbel.jobs.media.probe import Facts

Progress = Callable[[float, float | None, str], None]

PROBE_TIMEOUT_S = 30.0
_SOURCE, _OUTPUT = "source", "output.mp4"
# These say their own length; that of the others is FFmpeg's guess.
_SAY_THEIR_LENGTH = ("mov", "matroska")
# Not the file's fault, and maybe gone at the next try.
_SHORTAGES = ("No space left on device", "Cannot allocate memory", "Unknown encoder")


def probe(path: Path, limits: Limits | None = None) -> Facts:
    """What a video holds, found by decoding its first picture in a process of its own.

    Args:
        path: the video; no other file is read, whatever it says.
        limits: what it may cost; its time is at most 30 s.

    Raises:
        MediaError: no video, damaged, or with pictures that are too large.
    """
    limits = limits or Limits()
    with _private(path, path.parent) as directory:
        return _probe(directory, _SOURCE, limits)


def transcode(
    source: Path,
    target: Path,
    *,
    height: int | None = None,
    preset: Preset = "veryfast",
    crf: int = 23,
    audio_kbps: int = 128,
    progress: Progress = lambda *_: None,
    cancelled: Callable[[], bool] = lambda: False,
    limits: Limits | None = None,
    ffmpeg: Path | None = None,
) -> Facts:
    """Write an MP4 that plays everywhere to `target`; it is there only once it was checked.

    Upright, with even sides and 4:2:0 colour, its index in front, timestamps as in the source,
    sound as mono or stereo at 48 kHz, without metadata.

    Args:
        source: the video; no other file is read, whatever it says.
        target: in a directory that exists; work goes on beside it.
        height: at most this many lines, even; None keeps them. Never enlarged.
        preset: x264's.
        crf: x264's, from 0 (lossless) to 51.
        audio_kbps: of the sound.
        progress: called with pictures done, pictures in all (None where unknown), and a note; the
            two are equal only when the result was checked.
        cancelled: asked several times a second.
        limits: what it may cost.
        ffmpeg: the program, in place of the one that would be found.

    Returns:
        What the result holds.

    Raises:
        MediaError: the source is no video, damaged or too large, or the result is not right.
        ToolFailed: FFmpeg is missing, was killed, or the disk is full.
        JobCancelled: `cancelled` said so, at most a second ago.
    """
    limits = limits or Limits()
    program = find_ffmpeg(ffmpeg)
    with _private(source, target.parent) as directory:
        facts = _probe(directory, _SOURCE, limits, cancelled)
        _check_duration(facts.duration_s, limits)
        size = _size(facts, height)
        counter = _Counter(_total(facts), progress)
        options = ["-preset", preset, "-crf", str(crf), "-b:a", f"{audio_kbps}k"]
        command = [str(program), *_inputs(facts, limits), *_outputs(facts, size, limits), *options]
        status, errors = run(
            [*command, "-f", "mp4", f"file:{_OUTPUT}"],
            directory=directory,
            limits=limits,
            on_line=counter.read,
            cancelled=cancelled,
        )
        _check_status(status, errors, limits)
        made = _probe(directory, _OUTPUT, limits, cancelled)
        check_output(directory / _OUTPUT, made, facts, size, counter.frames)
        _check_duration(made.duration_s, limits)
        (directory / _OUTPUT).replace(target)
    counter.finish()
    return made


def check_output(
    path: Path, made: Facts, source: Facts, size: tuple[int, int], frames: int
) -> None:
    """Compare what was made with what was to be made: an exit status of 0 says too little.

    FFmpeg ends well on a source that was cut off, with less in the result.

    Raises:
        MediaError: ``video.truncated`` where the source is the likely cause, else ``video.wrong``.
    """
    wanted = ("h264", *size, frames, bool(source.audio_codec))
    got = (made.video_codec, made.width, made.height, made.frames, bool(made.audio_codec))
    if got != wanted or not made.frames or made.duration_s is None:
        raise MediaError("video.wrong", f"expected {wanted}, got {got}")
    if not _index_is_in_front(path):
        raise MediaError("video.wrong", "the index (moov) is not in front of the data (mdat)")
    if source.format.startswith(_SAY_THEIR_LENGTH) and _is_short(made, source):
        raise MediaError(
            "video.truncated",
            f"the source says {source.duration_s or 0:.1f} s and {source.frames} pictures; "
            f"{made.duration_s:.1f} s and {made.frames} could be read",
        )


def _is_short(made: Facts, source: Facts) -> bool:
    """Whether time is missing at the end, or pictures anywhere: damage leaves the length alone."""
    expected_s, made_s = source.duration_s or 0, made.duration_s or 0
    one_picture_s = 1 / source.rate if source.rate else 0
    missing_s = max(0.5, one_picture_s, expected_s * 0.02)
    # H.264 in fields may have an entry of the index for each, so two for a picture.
    missing = source.frames / 2 if source.interlaced else max(1, source.frames * 0.03)
    return expected_s - made_s > missing_s or source.frames - made.frames > missing


@contextmanager
def _private(source: Path, beside: Path) -> Iterator[Path]:
    """A directory for one run, where the source has a name of our choosing and no neighbours."""
    with TemporaryDirectory(prefix=".video-", dir=beside) as name:
        directory = Path(name)
        (directory / _SOURCE).symlink_to(source.resolve())
        yield directory


def _probe(
    directory: Path, name: str, limits: Limits, cancelled: Callable[[], bool] = lambda: False
) -> Facts:
    """By a program of its own, see `umbel.jobs.media.probe`; -P keeps `directory` off its path."""
    lines: list[str] = []
    program = [sys.executable, "-P", "-m", "umbel.jobs.media.probe", name, str(limits.pixels)]
    status, errors = run(
        program,
        directory=directory,
        limits=replace(limits, timeout_s=min(limits.timeout_s, PROBE_TIMEOUT_S)),
        on_line=lines.append,
        cancelled=cancelled,
    )
    if status or not lines:
        why = errors.rpartition("\n")[2] or f"exit status {status}"
        raise MediaError("video.unreadable", f"not a video that can be read: {why}")
    answer = json.loads(lines[-1])
    if refused := answer.get("refused"):
        raise MediaError(*refused)
    return Facts(**answer["facts"])


def _check_duration(duration_s: float | None, limits: Limits) -> None:
    if duration_s and duration_s > limits.duration_s:
        raise MediaError(
            "video.too_long", f"{duration_s:.0f} s; the limit is {limits.duration_s:.0f} s"
        )


def _size(source: Facts, height: int | None) -> tuple[int, int]:
    """Even sides, as 4:2:0 colour needs them, at most as large as the source's."""
    lines = min(source.height, height or source.height)
    width = source.width * lines / source.height
    even = min(round(width / 2), source.width // 2) * 2
    return max(2, even), max(2, lines // 2 * 2)


def _total(source: Facts) -> int | None:
    if source.frames:
        return source.frames
    return round((source.duration_s or 0) * source.rate) or None


def _inputs(source: Facts, limits: Limits) -> list[str]:
    threads = str(limits.threads)
    confined = ["-protocol_whitelist", PROTOCOLS, "-format_whitelist", FORMATS]
    return [
        *("-hide_banner", "-nostdin", "-v", "error", "-y"),
        *("-progress", "pipe:1", "-stats_period", "0.5", "-nostats"),
        *("-filter_threads", threads, "-threads", threads),
        *(*confined, "-max_pixels", str(limits.pixels)),
        *("-i", f"file:{_SOURCE}", "-map", f"0:{source.video_index}", "-map", "0:a:0?"),
    ]


def _outputs(source: Facts, size: tuple[int, int], limits: Limits) -> list[str]:
    """FFmpeg turns the pictures upright by itself, before the filters."""
    square = ",setsar=1" if source.square else ""
    # One second over the limit, so that a source of unknown length shows that it is longer.
    return [
        *("-t", str(limits.duration_s + 1), "-sn", "-dn"),
        *("-map_metadata", "-1", "-map_chapters", "-1"),
        *("-vf", f"scale={size[0]}:{size[1]}{square},format=yuv420p"),
        # By itself the encoder's clock ticks at the rate that FFmpeg guessed at the beginning,
        # and "vfr" drops what falls within one tick: 400 of 600 pictures when they get faster.
        *("-fps_mode", "vfr", "-enc_time_base", "1:90000"),
        *("-c:v", "libx264", "-threads", str(limits.threads)),
        *("-video_track_timescale", "90000", "-movflags", "+faststart"),
        *("-af", "aresample=async=1", "-ar", "48000", "-ac", str(min(2, source.audio_channels))),
        *("-c:a", "aac"),
    ]


def _check_status(status: int, errors: str, limits: Limits) -> None:
    if status == 0:
        return
    last = errors.rpartition("\n")[2] or f"exit status {status}"
    if status == -signal.SIGXFSZ:
        megabytes = limits.output_bytes / 1e6
        raise MediaError("video.too_large", f"the result is larger than {megabytes:.0f} MB")
    if status < 0 or any(shortage in errors for shortage in _SHORTAGES):
        raise ToolFailed(f"FFmpeg ended with {status}: {last}")
    raise MediaError("video.unreadable", f"FFmpeg cannot read it: {last}")


class _Counter:
    """Reads FFmpeg's progress; reports never go back, and reach the total only after the checks."""

    def __init__(self, total: int | None, progress: Progress) -> None:
        self.frames = 0
        self._total, self._progress = total, progress

    def read(self, line: str) -> None:
        name, _, value = line.partition("=")
        if name == "frame" and value.strip().isdigit():
            self.frames = max(self.frames, int(value))
            most = self.frames if self._total is None else self._total - 1
            self._progress(min(self.frames, most), self._total, "encoding")

    def finish(self) -> None:
        total = self._total or self.frames
        self._progress(total, total, "checked")


def _index_is_in_front(path: Path) -> bool:
    """Whether moov comes before mdat among the boxes of an MP4 (ISO 14496-12, 4.2)."""
    with path.open("rb") as file:
        while len(header := file.read(8)) == 8:
            size_bytes, kind = struct.unpack(">I4s", header)
            if kind in (b"moov", b"mdat"):
                return bool(kind == b"moov")
            skip = struct.unpack(">Q", file.read(8))[0] - 16 if size_bytes == 1 else size_bytes - 8
            file.seek(skip, 1)
    return False

"""Videos that play everywhere: H.264 and AAC in an MP4, made by FFmpeg and checked before use."""

from __future__ import annotations

import json
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
    progress(made.frames, made.frames, "checked")
    return made

"""Smaller copies of pictures, by libvips.

pyvips is imported inside the functions only: a process that has run libvips must not fork, and a
worker's main process forks its children.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umbel.jobs.media.contracts import ImageFormat
from umbel.jobs.media.errors import MediaError

MAX_PIXELS = 64_000_000
"""Of all frames together: a decoded pixel takes 3 to 8 bytes. imgproxy's limit is 50 million."""

_READABLE = {"jpegload", "pngload", "webpload", "gifload", "tiffload", "heifload"}
_READ_HERE = "JPEG, PNG, WebP, GIF, TIFF and AVIF are read here"
_SUFFIX: dict[ImageFormat, str] = {"jpeg": ".jpg", "webp": ".webp"}
# Under concurrency libvips' own threads only add memory; jobs run beside each other.
_THREADS = "1"
_ANY_HEIGHT = 10_000_000  # without one libvips fits pictures into a square of the width


@dataclass(frozen=True)
class Copy:
    """A smaller copy, on disk.

    Attributes:
        path: where it is.
        format: its format.
        width: in pixels.
        height: likewise.
    """

    path: Path
    format: ImageFormat
    width: int
    height: int


def resize(
    source: Path,
    directory: Path,
    *,
    widths: Sequence[int],
    formats: Sequence[ImageFormat],
    quality: int,
    progress: Callable[[float, float | None, str], None] = lambda *_: None,
) -> list[Copy]:
    """Write the copies into `directory`.

    The source is decoded once, at the largest width; the others derive from that one.

    Args:
        source: the picture.
        directory: where the copies go.
        widths: in pixels, each once; wider than the picture gives the picture's width, once.
        formats: each width in each of them.
        quality: from 1 to 100.
        progress: called with copies done, copies in all, and what is at work.

    Returns:
        The copies, the widest first.

    Raises:
        MediaError: the file is no picture, is damaged, or too large to decode.
    """
    vips = _vips()
    largest = _thumbnail(vips, source, max(widths))
    wanted = sorted({min(width, largest.width) for width in widths}, reverse=True)
    copies: list[Copy] = []
    total = len(wanted) * len(formats)
    for width in wanted:
        picture = largest if width == largest.width else _narrower(largest, width)
        for format_ in formats:
            path = directory / f"{width}{_SUFFIX[format_]}"
            _save(vips, picture, path, format_, quality)
            copies.append(Copy(path, format_, picture.width, picture.height))
            progress(len(copies), total, path.name)
    return copies


def check_header(vips: Any, source: Path) -> Any:
    """The opened picture, of which nothing is decoded yet.

    Raises:
        MediaError: no picture that is read here, or too many pixels.
    """
    try:
        header = vips.Image.new_from_file(str(source), access="sequential")
    except vips.Error as error:
        what = "an empty file" if source.stat().st_size == 0 else "not a picture"
        raise MediaError("image.unreadable", f"{what}; {_READ_HERE}") from error
    loader = header.get("vips-loader")
    if loader not in _READABLE:
        raise MediaError("image.unreadable", f"{loader} is not allowed; {_READ_HERE}")
    pages = header.get("n-pages") if header.get_typeof("n-pages") else 1
    pixels = header.width * header.height * pages
    if pixels > MAX_PIXELS:
        size = f"{header.width} x {header.height}" + (f" x {pages} pages" if pages > 1 else "")
        raise MediaError(
            "image.bomb",
            f"{size} = {pixels / 1e6:.0f} megapixels; the limit is {MAX_PIXELS / 1e6:.0f}",
        )
    return header


def _thumbnail(vips: Any, source: Path, width: int) -> Any:
    try:
        header = check_header(vips, source)
        options = {"size": "down", "fail_on": "truncated", "height": _ANY_HEIGHT}
        # Converting without a profile costs four times the time for the same bytes.
        if header.get_typeof("icc-profile-data"):
            options["export_profile"] = "srgb"
        # Decoded here and now, so that a damaged file fails before the first copy is written.
        return vips.Image.thumbnail(str(source), width, **options).copy_memory()
    except vips.Error as error:
        raise MediaError("image.damaged", _first_line(error)) from error


def _narrower(picture: Any, width: int) -> Any:
    return picture.thumbnail_image(width, size="down", height=_ANY_HEIGHT)


def _save(vips: Any, picture: Any, path: Path, format_: ImageFormat, quality: int) -> None:
    options: dict[str, Any] = {"Q": quality, "keep": "none"}
    if format_ == "jpeg":
        options["background"] = [255, 255, 255]  # JPEG has no transparency
    try:
        picture.write_to_file(str(path), **options)
    except vips.Error as error:
        raise MediaError("image.unwritable", _first_line(error)) from error


def _vips() -> Any:
    os.environ.setdefault("VIPS_CONCURRENCY", _THREADS)
    # SVG, PDF and others that run much code on a stranger's bytes.
    os.environ["VIPS_BLOCK_UNTRUSTED"] = "1"
    try:
        import pyvips  # noqa: PLC0415  see the module's docstring
    except ImportError as error:
        raise MediaError("image.missing", "pictures need: pip install 'umbel[media]'") from error
    pyvips.cache_set_max(0)  # every picture is another one
    return pyvips


def _first_line(error: Any) -> str:
    text = str(error.message).strip() + ": " + str(error.detail).strip().partition("\n")[0]
    return text.strip(": ")

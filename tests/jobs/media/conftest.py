"""Real media: made by FFmpeg and libvips, the hostile ones byte by byte."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from imageio_ffmpeg import get_ffmpeg_exe

InChild = Callable[..., Any]
Make = Callable[..., Path]

# libvips must not run in the test process: whatever is forked from it later would hang.
_CHILD = """
import json, resource, sys
arguments = json.loads(sys.argv[1])
globals().update(arguments)
{code}
print(json.dumps(result))
"""

PICTURES = """
import pyvips
red = pyvips.Image.black(400, 200, bands=3) + [255, 0, 0]
blue = pyvips.Image.black(400, 200, bands=3) + [0, 0, 255]
# Upright: red above blue.
flag = red.join(blue, "vertical").cast("uchar").copy(interpretation="srgb")
noise = pyvips.Image.gaussnoise(1200, 800, mean=128, sigma=40).cast("uchar")
noise = noise.bandjoin([noise, noise]).copy(interpretation="srgb")

lying = flag.rot270()
lying.set_type(pyvips.GValue.gint_type, "orientation", 6)
lying.set_type(pyvips.GValue.gstr_type, "exif-ifd0-Make", "Camera (Camera, ASCII, 7 components)")
lying.icc_transform("p3", input_profile="srgb").jpegsave(f"{directory}/lying", Q=95)

noise.jpegsave(f"{directory}/landscape")
noise.rot90().jpegsave(f"{directory}/portrait")
noise.pngsave(f"{directory}/png")
flag.colourspace("cmyk").jpegsave(f"{directory}/cmyk", keep="none")
flag.colourspace("rgb16").pngsave(f"{directory}/sixteen", bitdepth=16)
flag.bandjoin(0).copy(interpretation="srgb").pngsave(f"{directory}/transparent")
pyvips.Image.black(20, 20_000).pngsave(f"{directory}/tall")
frames = red.join(blue, "vertical").cast("uchar").copy(interpretation="srgb")
frames.set_type(pyvips.GValue.gint_type, "page-height", 200)
frames.gifsave(f"{directory}/animated")
result = None
"""


@pytest.fixture(scope="session")
def in_child() -> InChild:
    """Run Python text in a process of its own; arguments are its names, `result` comes back."""

    def run(code: str, **arguments: Any) -> Any:
        text = json.dumps(arguments, default=str)
        command = [sys.executable, "-c", _CHILD.replace("{code}", code), text]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory, in_child: InChild) -> Path:
    """A directory of pictures, good and hostile, none with a suffix that says what it is."""
    directory = tmp_path_factory.mktemp("pictures")
    in_child(PICTURES, directory=directory)
    whole = (directory / "landscape").read_bytes()
    (directory / "truncated").write_bytes(whole[: len(whole) // 2])
    (directory / "bomb").write_bytes(black_png(30_000, 30_000))
    (directory / "svg").write_text('<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
    (directory / "text.jpg").write_text("This is plain English text, not a picture.\n" * 20)
    (directory / "empty").write_bytes(b"")
    return directory


def black_png(width: int, height: int) -> bytes:
    """A PNG of one bit a pixel: 900 megapixels in 109 KB."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    squeeze = zlib.compressobj(9)
    line = bytes(1 + (width + 7) // 8)
    data = b"".join(squeeze.compress(line) for _ in range(height)) + squeeze.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    )


@pytest.fixture(scope="session")
def make_video(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Make a video with FFmpeg's own test pattern, or whatever the arguments say."""
    directory = tmp_path_factory.mktemp("videos")

    def make(name: str, *arguments: str | Path) -> Path:
        command = [get_ffmpeg_exe(), "-v", "error", "-y", *map(str, arguments), directory / name]
        subprocess.run(command, check=True, timeout=60)
        return directory / name

    return make


@pytest.fixture(scope="session")
def clip(make_video: Make) -> Path:
    """Two seconds of 320 x 240 at 30 pictures a second with a tone: H.264 and AAC in an MP4."""
    picture = "testsrc2=size=320x240:rate=30:duration=2"
    tone = "sine=frequency=440:duration=2"
    inputs = ("-f", "lavfi", "-i", picture, "-f", "lavfi", "-i", tone)
    return make_video("clip.mp4", *inputs, "-pix_fmt", "yuv420p", "-metadata", "comment=at home")


@pytest.fixture(scope="session")
def long_clip(make_video: Make) -> Path:
    """A minute of 640 x 360, without sound: takes a slow preset far longer than any test."""
    picture = "testsrc2=size=640x360:rate=30:duration=60"
    return make_video("long.mp4", "-f", "lavfi", "-i", picture, "-preset", "ultrafast")

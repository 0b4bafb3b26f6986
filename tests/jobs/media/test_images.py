"""Copies of pictures: right side up, nothing private in them, and no bomb is ever decoded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

RESIZE = """
import time
from pathlib import Path
from umbel.jobs.media.errors import MediaError
from umbel.jobs.media.images import resize

before_kb, started = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
calls, refused, copies = [], None, []
try:
    copies = resize(Path(source), Path(target), widths=widths, formats=formats, quality=80,
                    progress=lambda *call: calls.append(call))
except MediaError as error:
    refused = str(error)
seconds = time.monotonic() - started
grown_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb

import pyvips
made = []
for copy in copies:
    picture = pyvips.Image.new_from_file(str(copy.path))
    thirds = [picture.height // 4, picture.height * 3 // 4]
    made.append({
        "width": picture.width, "height": picture.height, "loader": picture.get("vips-loader"),
        "said": [copy.format, copy.width, copy.height], "fields": picture.get_fields(),
        "points": [[round(v) for v in picture(picture.width // 2, y)] for y in thirds],
    })
result = {"made": made, "refused": refused, "calls": calls}
result |= {"seconds": seconds, "grown_kb": grown_kb}
"""


@pytest.fixture
def resize(in_child: Any, pictures: Path, tmp_path: Path) -> Any:
    """Resize one of the pictures, and look at what came out."""

    def run(name: str, widths: list[int], formats: tuple[str, ...] = ("jpeg",)) -> Any:
        source = pictures / name
        return in_child(RESIZE, source=source, target=tmp_path, widths=widths, formats=formats)

    return run


def sizes(outcome: Any) -> list[tuple[int, int]]:
    """Of the copies, as they are on disk."""
    return [(copy["width"], copy["height"]) for copy in outcome["made"]]


def near(colour: list[int], wanted: tuple[int, int, int], within: int = 12) -> bool:
    """Whether a colour survived JPEG."""
    return all(abs(value - aim) <= within for value, aim in zip(colour, wanted, strict=True))


def test_each_width_in_each_format(resize: Any) -> None:
    """Widest first, both formats of each width; what is said is what is on disk."""
    outcome = resize("landscape", [150, 600], ("jpeg", "webp"))
    assert sizes(outcome) == [(600, 400), (600, 400), (150, 100), (150, 100)]
    assert [copy["loader"] for copy in outcome["made"]] == ["jpegload", "webpload"] * 2
    assert [copy["said"][0] for copy in outcome["made"]] == ["jpeg", "webp"] * 2
    assert all(tuple(copy["said"][1:]) in sizes(outcome) for copy in outcome["made"])
    assert [call[:2] for call in outcome["calls"]] == [[n, 4] for n in (1, 2, 3, 4)]


def test_a_portrait_has_the_widths_asked_for(resize: Any) -> None:
    """The width counts, not the longer side; in the derived copies too."""
    assert sizes(resize("portrait", [400, 200])) == [(400, 600), (200, 300)]


def test_never_enlarged(resize: Any) -> None:
    """Widths beyond the picture's give its own width, once."""
    assert sizes(resize("landscape", [5000, 4000, 300])) == [(1200, 800), (300, 200)]


def test_upright_and_nothing_private(resize: Any) -> None:
    """EXIF orientation 6 is applied, then EXIF and ICC profile are dropped; colours stay."""
    outcome = resize("lying", [200])
    (copy,) = outcome["made"]
    assert (copy["width"], copy["height"]) == (200, 200)
    above, below = copy["points"]
    assert near(above, (255, 0, 0)), above
    assert near(below, (0, 0, 255)), below
    private = [f for f in copy["fields"] if f.startswith(("exif", "icc", "xmp", "iptc"))]
    assert private == []
    assert "orientation" not in copy["fields"]


@pytest.mark.parametrize("name", ["cmyk", "sixteen"])
def test_other_colours_become_srgb(resize: Any, name: str) -> None:
    """CMYK and 16 bits come out as plain colours of 8 bits."""
    (copy,) = resize(name, [200])["made"]
    above, below = copy["points"]
    assert len(above) == 3
    assert above[0] > above[2] + 100
    assert below[2] > below[0] + 80  # ink cannot print a screen's blue
    assert max(*above, *below) <= 255


def test_transparency_turns_white_in_jpeg(resize: Any) -> None:
    """JPEG has none; black would be a surprise."""
    (copy,) = resize("transparent", [100])["made"]
    assert all(near(point, (255, 255, 255)) for point in copy["points"])


def test_the_first_frame_of_an_animation(resize: Any) -> None:
    """One frame, not the strip of all."""
    (copy,) = resize("animated", [200])["made"]
    assert (copy["width"], copy["height"]) == (200, 100)
    assert all(near(point, (255, 0, 0)) for point in copy["points"])


def test_a_bomb_is_refused_by_its_header(resize: Any, pictures: Path) -> None:
    """900 megapixels in 109 KB: at once, and without the memory."""
    assert (pictures / "bomb").stat().st_size < 120_000
    outcome = resize("bomb", [100])
    assert outcome["refused"].startswith("image.bomb: 30000 x 30000 = 900 megapixels; the limit is")
    assert outcome["seconds"] < 0.5
    assert outcome["grown_kb"] < 60_000  # the library itself; the pixels would be 112 MB and more


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("truncated", "image.damaged"),
        ("svg", "image.unreadable"),
        ("text.jpg", "image.unreadable"),
        ("empty", "image.unreadable"),
    ],
)
def test_refused(resize: Any, tmp_path: Path, name: str, code: str) -> None:
    """With the reason, and without leaving half of the copies behind."""
    outcome = resize(name, [300, 100])
    assert outcome["refused"].startswith(f"{code}: ")
    assert outcome["seconds"] < 2
    assert list(tmp_path.iterdir()) == []


def test_too_tall_for_webp(resize: Any) -> None:
    """WebP holds 16,383 pixels a side."""
    assert resize("tall", [20], ("webp",))["refused"].startswith("image.unwritable: ")


def test_importing_runs_no_library(in_child: Any) -> None:
    """A worker forks after it has imported its jobs, and libvips and others do not survive that."""
    code = """
import sys
import umbel.jobs.blobs
from umbel.jobs.media import classification, contracts, ffmpeg, images, probe, videos
result = sorted({"pyvips", "av", "magika", "onnxruntime", "numpy", "obstore"} & set(sys.modules))
"""
    assert in_child(code) == []

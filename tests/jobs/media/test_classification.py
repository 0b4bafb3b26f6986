"""What a file is: by its bytes; its name plays no part."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from umbel.jobs.media.classification import classify
from umbel.jobs.media.contracts import Kind
from umbel.jobs.media.errors import MediaError


@pytest.mark.parametrize(
    ("name", "kind", "media_type"),
    [
        ("landscape", Kind.IMAGE, "image/jpeg"),
        ("png", Kind.IMAGE, "image/png"),
        ("animated", Kind.IMAGE, "image/gif"),
        ("text.jpg", Kind.TEXT, "text/plain"),
        ("empty", Kind.OTHER, "inode/x-empty"),
    ],
)
def test_pictures_and_pretenders(pictures: Path, name: str, kind: Kind, media_type: str) -> None:
    """No suffix needed, and none believed."""
    found = classify(pictures / name)
    assert (found.kind, found.media_type) == (kind, media_type)
    assert 0 <= found.confidence <= 1


def test_a_video_under_any_name(clip: Path, tmp_path: Path) -> None:
    """By the bytes."""
    disguised = tmp_path / "notes.txt"
    disguised.write_bytes(clip.read_bytes())
    assert classify(disguised).kind == Kind.VIDEO


def test_a_list_of_files_is_no_video(tmp_path: Path) -> None:
    """FFmpeg's concat text under the name of a video is text."""
    path = tmp_path / "video.mp4"
    path.write_text("ffconcat version 1.0\nfile neighbour.mp4\n")
    assert classify(path).kind == Kind.TEXT


def test_a_missing_file(tmp_path: Path) -> None:
    """Is a clear error."""
    with pytest.raises(MediaError, match=r"^content\.unreadable: "):
        classify(tmp_path / "nothing")


def test_from_several_threads(pictures: Path) -> None:
    """One model serves them all."""
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(classify, [pictures / "landscape"] * 16))
    assert {each.media_type for each in found} == {"image/jpeg"}

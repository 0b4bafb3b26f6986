"""`make demo`, run as a newcomer would, and its pages in a real browser."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import zlib
from pathlib import Path
from struct import pack

import pytest
from support.process import LocalProcess, eventually

from umbel.jobs.media.ffmpeg import find_ffmpeg

# Two demos that start at once could choose the same ports.
pytestmark = [pytest.mark.xdist_group("demo"), pytest.mark.timeout(300)]

CHROMIUM = [
    *("chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update"),
    *("--disable-sync", "--virtual-time-budget=8000", "--timeout=30000"),
]


@pytest.fixture(scope="module")
def media(tmp_path_factory) -> list[str]:
    """A picture and a video, made here."""
    directory = tmp_path_factory.mktemp("media")
    video, picture = directory / "test.mp4", directory / "test.png"
    subprocess.run(
        [find_ffmpeg(), "-v", "error", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=25"]
        + ["-f", "lavfi", "-i", "sine", "-t", "2", "-pix_fmt", "yuv420p", video],
        check=True,
    )
    picture.write_bytes(png(400, 300))
    return [str(picture), str(video)]


def png(width: int, height: int) -> bytes:
    """A grey picture."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return pack(">I", len(data)) + kind + data + pack(">I", zlib.crc32(kind + data))

    header = pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress((b"\0" + b"\x80" * width) * height)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


def demo(app_dir: Path, *arguments: str, name: str = "demo") -> LocalProcess:
    """The demo as a process, in an empty project."""
    (app_dir / "pyproject.toml").touch()
    return LocalProcess(
        name=name,
        command=[sys.executable, "-m", "umbel.demo", *arguments],
        cwd=app_dir,
        env={"COLUMNS": "120"},
        ready="Sending",
    )


def test_once_it_ends_by_itself_and_every_result_was_checked(app_dir, media):
    """Exit status 0, a table of the results, and nothing is left running."""
    process = demo(app_dir, "--once", *media)
    process.start(timeout_s=60)
    assert process.wait() == 0, process.logs()
    said = process.logs()
    assert "400 x 300 jpeg" in said
    assert "320 x 240 h264, 2.0 s" in said
    assert "7 results, each fetched and its hash checked" in said
    assert "Traceback" not in said


def test_a_file_that_is_refused_is_a_failure_with_its_reason(app_dir, media, tmp_path):
    """Exit status 1; the others are done all the same."""
    (tmp_path / "cat.jpg").write_bytes(png(40, 30)[:60])
    process = demo(app_dir, "--once", str(tmp_path / "cat.jpg"), media[0])
    process.start(timeout_s=60)
    assert process.wait() == 1, process.logs()
    assert "failed: cat.jpg: resize: failed: MediaError: image." in process.logs()
    assert "400 x 300 jpeg" in process.logs()


def test_it_stays_until_ctrl_c_and_its_pages_work(app_dir, media, tmp_path):
    """Flower and the documentation in a real browser; then Ctrl-C, and everything has ended."""
    if not shutil.which("chromium"):
        pytest.skip("needs Debian's chromium: apt-get install chromium")
    process = demo(app_dir, *media)
    process.start(timeout_s=60)
    process.wait_for_log("Press Ctrl-C to stop", timeout_s=60)
    addresses = [word for word in process.logs().split() if word.startswith("http://")]
    [docs] = {address for address in addresses if address.endswith("/docs")}
    [tasks] = {address for address in addresses if address.endswith("/tasks")}
    flower = tasks.removesuffix("/tasks")
    shows(docs, ["/v1/jobs/video.transcode", "Make an MP4 that plays everywhere."], tmp_path)
    shows(tasks, ["content.classify", "image.resize", "video.transcode", "SUCCESS"], tmp_path)
    shows(f"{flower}/workers", ["classification@", "images@", "videos@"], tmp_path)
    shows(f"{flower}/broker", ["classification", "images", "videos"], tmp_path)
    os.kill(process.pid, signal.SIGINT)
    assert process.wait() == 0
    eventually(lambda: not process.members(), 20)


def shows(address: str, words: list[str], directory: Path) -> None:
    """The page has these words, now or once Flower has asked its workers."""
    eventually(
        lambda: all(word in browse(address, directory) for word in words),
        40,
        expected=f"{words} on {address}",
    )


def browse(address: str, directory: Path) -> str:
    """What a browser shows of a page, as HTML after its scripts have run."""
    profile = f"--user-data-dir={directory / 'chromium'}"
    command = [*CHROMIUM, profile, "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90)
    assert done.stdout, f"{address}: status {done.returncode}\n{done.stderr[-3000:]}"
    return done.stdout

"""A contract that changed: messages of the last release are done by the worker of this one.

python examples/versions.py

Starts a worker of its own on the embedded broker; what was sent before the change is sent by the
last release, which is here beside the new one.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from umbel import Message, Umbel, upcast

app = Umbel("pictures")


class ResizeV1(Message, name="pictures.resize", version=1):
    """As it was: one width. It stays as long as such messages may wait somewhere."""

    source: str
    width: int


class Resize(Message, name="pictures.resize", version=2):
    """As it is."""

    source: str
    widths: list[int]


@upcast(ResizeV1, to=Resize)
def one_width(old: ResizeV1) -> Resize:
    """How the one becomes the other."""
    return Resize(source=old.source, widths=[old.width])


@app.job
def resize(message: Resize) -> list[str]:
    """Knows nothing of version 1."""
    return [f"{message.source} at {width} pixels" for width in message.widths]


last_release = Umbel("pictures")


@last_release.job(name="pictures.resize")
def resize_one(message: ResizeV1) -> list[str]:
    """What the last release ran; here it only sends."""
    raise NotImplementedError


def main() -> None:
    """One message of each release."""
    before = resize_one.request(ResizeV1(source="cat.jpg", width=320))
    after = resize.request(Resize(source="cat.jpg", widths=[320, 640]))
    print(f"a message of version 1 was done: {before.result(60)}")
    print(f"one of version 2 too: {after.result(60)}")


if __name__ == "__main__":
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "versions", "worker", "-c", "1", "-l", "WARNING"],
        cwd=Path(__file__).parent,
    )
    try:
        main()
    finally:
        worker.terminate()
        worker.wait()

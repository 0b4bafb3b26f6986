"""What a job did, told outside of every queue and store: a line in a file, by the job itself."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

FILE = "CHAOS_EFFECTS"
"""The variable that names the file."""


@contextmanager
def effect(number: int, job: Any) -> Iterator[str]:
    """A run of job `number`: a line when it begins, and its effect, a line when it is done.

    Args:
        number: of the job.
        job: the Celery task.
    """
    run, attempt = uuid4().hex, 1 + (job._get_request().retries or 0)
    _write("begun", run, number, attempt)
    yield run
    _write("done", run, number, attempt)


def take(seconds: float) -> None:
    """Take some time; `time.sleep` fails under libfaketime."""
    threading.Event().wait(seconds)


def use_up_memory() -> None:
    """Take memory until the kernel ends this process; where nobody is limited, do as it does."""
    taken = [bytearray(b"x" * (1 << 20)) for _ in range(512)]
    os.kill(os.getpid(), signal.SIGKILL)
    del taken


def _write(*fields: object) -> None:
    # One write of one short line to the file's end: whole, whoever else writes.
    line = " ".join(map(str, [*fields, os.getpid(), time.monotonic()]))
    file = os.open(os.environ[FILE], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(file, f"{line}\n".encode())
    finally:
        os.close(file)

"""The work: one message for all systems, and one effect for all of their jobs.

Standard library only: it is imported by every producer and by every worker.
"""

from __future__ import annotations

import os
import struct
import time
from pathlib import Path
from typing import Any

RECORD = struct.Struct("<qq")  # the message's number, and when its job began (monotonic, in ns)

# Where the harness says what is where.
BROKER, STORE, EFFECTS = "BENCH_BROKER", "BENCH_STORE", "BENCH_EFFECTS"
SUBSCRIBERS = "BENCH_SUBSCRIBERS"

_file = (0, -1)  # of which process, and its descriptor


def message(number: int) -> dict[str, Any]:
    """A small JSON object: a string, an integer, a short list."""
    return {"name": f"picture-{number:07}.jpg", "number": number, "widths": [150, 600, 1200]}


def record(number: int) -> None:
    """What each job does, as its first line: 16 bytes appended to a file of its process.

    About a microsecond, without a server or a lock, so that it costs every system the same. The
    clock is the machine's, and so comparable with the producer's.
    """
    global _file
    now = time.monotonic_ns()
    if _file[0] != os.getpid():
        path = Path(os.environ[EFFECTS], str(os.getpid()))
        _file = os.getpid(), os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(_file[1], RECORD.pack(number, now))


def broker_url() -> str:
    """The Valkey or RabbitMQ of this trial."""
    return os.environ[BROKER]


def store_url() -> str:
    """The Valkey of the run, for what a system keeps beside its queue."""
    return os.environ[STORE]


def on_rabbitmq() -> bool:
    """Whether this trial is on RabbitMQ."""
    return broker_url().startswith("amqp")

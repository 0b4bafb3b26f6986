"""Locks on files, which the kernel drops with the process that holds them.

`fcntl` and not `filelock`, which has no plain shared lock.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from umbel.config.errors import EmbeddedError

if sys.platform != "win32":  # there this module can be imported, and nobody calls it
    import fcntl

POLL_S = 0.02


def open_lock(path: Path) -> int:
    """A handle on a lock's file, which may be new; nothing is locked yet."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def try_lock(handle: int, how: int) -> bool:
    """Lock it if nobody is in the way. `how` is ``fcntl.LOCK_SH`` or ``fcntl.LOCK_EX``."""
    try:
        fcntl.flock(handle, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock(path: Path, how: int, deadline: float) -> int:
    """Lock a file and return its handle.

    Raises:
        EmbeddedError: somebody is in the way until `deadline`, of `time.monotonic`.
    """
    handle = open_lock(path)
    if eventually(lambda: try_lock(handle, how), deadline):
        return handle
    os.close(handle)
    raise EmbeddedError(f"another process keeps {path} locked; end it (`fuser {path}` names it)")


@contextlib.contextmanager
def locked(path: Path, deadline: float) -> Iterator[None]:
    """Alone, for the length of a block."""
    handle = lock(path, fcntl.LOCK_EX, deadline)
    try:
        yield
    finally:
        fcntl.flock(handle, fcntl.LOCK_UN)  # closing is not enough: a child forked now shares it
        os.close(handle)


def is_at(handle: int, path: Path) -> bool:
    """Whether an open file is still the one at its path."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def eventually(condition: Callable[[], bool], deadline: float) -> bool:
    """Whether `condition` comes true until `deadline`, of `time.monotonic`."""
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True

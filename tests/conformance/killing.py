"""The application with processes that kill themselves where a message tells them to.

A message of `settled` names the moment in its `key`; its process dies there once. The moments are
the beginning and the end of each function between the job's last line and its settlement.
"""

from __future__ import annotations

import functools
import os
import signal
from pathlib import Path
from typing import Any

from application import app, settled
from celery import signals

from umbel.consumers import callbacks, delivery, request
from umbel.consumers.replay import DeadLetterOffice
from umbel.jobs.records import Records

__all__ = ["app"]

_now: dict[str, Any] = {}


def die(moment: str) -> None:
    """If it is this one, and the first time."""
    if _now.get("key") == moment and _first_time(f"killed-{_now['case']}"):
        os.kill(os.getpid(), signal.SIGKILL)


def _first_time(name: str) -> bool:
    try:
        Path(name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def _deadly(owner: Any, name: str) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapped(*args: Any, **options: Any) -> Any:
        die(f"{name} begins")
        try:
            return original(*args, **options)
        finally:
            die(f"{name} ends")

    setattr(owner, name, wrapped)


_run, _acknowledge = delivery.run, request.Held.acknowledge


def run(one: Any, message: Any, reserved: Any) -> Any:
    """Remember which message this process is at; a run that is followed by another is none."""
    last = one.job is settled and (not message.fails or one.attempt == 2)
    _now.clear()
    _now.update(message.model_dump() if last else {})
    return _run(one, message, reserved)


def acknowledge(self: Any) -> None:
    """In the main process."""
    _now.clear()
    payload = self._args[0] if self._args else None
    if isinstance(payload, dict):
        _now.update(payload)
    die("acknowledge begins")
    _acknowledge(self)
    die("acknowledge ends")


delivery.run = run
request.Held.acknowledge = acknowledge
for function in (
    *("failure", "settle_at_last", "settle", "still_held"),
    *("tell_success", "tell_failure", "bury"),
):
    _deadly(delivery, function)
_deadly(callbacks, "_tell")
_deadly(type(settled), "encode_result")
_deadly(DeadLetterOffice, "add")
_deadly(Records, "succeeded")
_deadly(Records, "ended")
signals.before_task_publish.connect(lambda **_: die("publish begins"), weak=False)
signals.after_task_publish.connect(lambda **_: die("publish ends"), weak=False)

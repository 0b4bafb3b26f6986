"""Where the processes of `killing` can die: each step's beginning and its end."""

from __future__ import annotations

TOLD = ("settle_at_last", "settle", "still_held", "publish", "_tell")
SUCCESS = [
    f"{step} {when}"
    for step in ("encode_result", *TOLD, "tell_success", "succeeded", "acknowledge")
    for when in ("begins", "ends")
]
FAILURE = [
    f"{step} {when}"
    for step in (*TOLD, "failure", "bury", "add", "tell_failure", "ended", "acknowledge")
    for when in ("begins", "ends")
]

MOMENTS = {"success": SUCCESS, "failure": FAILURE}

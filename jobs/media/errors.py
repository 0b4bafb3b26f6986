"""Media that a job refuses."""

from __future__ import annotations

from umbel.config.errors import UmbelError


class MediaError(UmbelError):
    """A file that cannot be used, or a result that is not what it must be.

    Attributes:
        code: which case it is, ``"image.bomb"``.
    """

    def __init__(self, code: str, problem: str) -> None:
        self.code = code
        self.problem = problem
        super().__init__(code, problem)

    def __str__(self) -> str:
        return f"{self.code}: {self.problem}"

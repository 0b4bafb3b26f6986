"""What a file is, by a model that reads its bytes; its name plays no part."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from umbel.jobs.media.contracts import Classification, Kind
from umbel.jobs.media.errors import MediaError

_KINDS = {
    "image": Kind.IMAGE,
    "video": Kind.VIDEO,
    "audio": Kind.AUDIO,
    "text": Kind.TEXT,
    "code": Kind.TEXT,
    "document": Kind.DOCUMENT,
    "archive": Kind.ARCHIVE,
}
_loading = Lock()


def classify(path: Path) -> Classification:
    """Say what a file is.

    Args:
        path: the file; some kilobytes of it are read.

    Raises:
        MediaError: it cannot be read, or the model is not installed.
    """
    with _loading:
        model = _model()
    result = model.identify_path(path)
    if not result.ok:
        raise MediaError("content.unreadable", str(result.status))
    output = result.output
    return Classification(
        label=output.label,
        media_type=output.mime_type,
        kind=_KINDS.get(output.group, Kind.OTHER),
        confidence=result.score,
    )


@cache
def _model() -> Any:
    """The model, once for each process; its runtime starts threads, so never before a fork."""
    try:
        from magika import Magika  # noqa: PLC0415
    except ImportError as error:
        raise MediaError("content.missing", "needs: pip install 'umbel[media]'") from error
    return Magika()

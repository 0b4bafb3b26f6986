"""The scene of a test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
from support.servers import Server

from chaos.harness import Scene


@pytest.fixture
def set_scene(app_dir: Path, broker: Server) -> Iterator[Callable[..., Scene]]:
    """Factory `set_scene(subject="umbel_app", **options of Scene) -> Scene`."""
    with ExitStack() as scenes:
        yield lambda subject="umbel_app", **options: scenes.enter_context(
            closing(Scene(subject, broker, app_dir, **options))
        )


@pytest.fixture
def scene(set_scene: Callable[..., Scene]) -> Scene:
    """Umbel, with a lease of a second."""
    return set_scene()

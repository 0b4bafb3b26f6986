"""What the web needs of the app, which it does not import."""

from __future__ import annotations

from typing import Protocol

from kombu.connection import Connection

from umbel.config.settings import Settings
from umbel.config.store import Store
from umbel.jobs.blobs import BlobStore
from umbel.jobs.records import Records


class Service(Protocol):
    """An `umbel.Umbel`."""

    main: str

    @property
    def settings(self) -> Settings: ...
    @property
    def prefix(self) -> str: ...
    @property
    def store(self) -> Store | None: ...
    @property
    def records(self) -> Records: ...
    @property
    def blobs(self) -> BlobStore: ...
    def connection_for_write(self) -> Connection:
        """A connection to the broker, not yet open."""

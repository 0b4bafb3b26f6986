"""What an app is made of: its settings, and the parts that they lead to."""

from __future__ import annotations

import difflib
import inspect
from functools import cached_property
from typing import TYPE_CHECKING, Any

from celery import Celery
from celery.app.defaults import DEFAULTS
from celery.app.utils import sanitize_url

from umbel.config.errors import SettingsError
from umbel.config.settings import Settings
from umbel.config.store import Store, required, store_url
from umbel.consumers.keys import Once
from umbel.consumers.replay import DeadLetterOffice
from umbel.consumers.webhook_log import WebhookLog
from umbel.jobs.blobs import BlobStore
from umbel.jobs.records import Records
from umbel.jobs.saga_records import SagaRecords
from umbel.producers.confirmed import ConfirmedExpress
from umbel.producers.express import Express
from umbel.producers.leased import LeasedExpress
from umbel.producers.publisher import Publisher
from umbel.producers.sender import Sender
from umbel.routing.queues import namespace_of
from umbel.routing.shards import ShardMaps

if TYPE_CHECKING:
    from umbel.producers.outbox import OutboxDatabase
    from umbel.producers.outbox.fallback import OutboxFallback


class Parts(Celery):
    """A Celery app with the parts of ours, each made when it is first needed.

    Args:
        name: the app's.
        broker: where messages wait.
        options: of `Settings`, or of Celery's own.
    """

    def __init__(self, name: str, broker: str | None = None, **options: Any) -> None:
        self._given = {key: options.pop(key) for key in list(options) if key in _SETTINGS}
        self._given.setdefault("broker_url", broker)
        _refuse_unknown(options)
        super().__init__(name, **options)

    @cached_property
    def settings(self) -> Settings:
        """From the environment, then from files, then from the arguments, then the defaults."""
        settings = Settings.load(**self._given)
        if settings.require_broker and settings.broker_url.startswith("embedded:"):
            raise SettingsError(
                "UMBEL_REQUIRE_BROKER is set, and the broker is embedded:// (for one machine): "
                "set UMBEL_BROKER_URL to a server, redis://host:6379/0 or amqp://host"
            )
        return settings

    @property
    def prefix(self) -> str:
        """The prefix of every key and exchange."""
        return namespace_of(self.settings, self.main)

    @cached_property
    def store(self) -> Store | None:
        """The state store, or None where there is none."""
        url = store_url(self.settings, self.conf.broker_url)
        return Store(url, self.settings.publish_timeout_s / 2) if url else None

    @cached_property
    def records(self) -> Records:
        """What is known of tracked jobs.

        Raises:
            StoreRequired: there is no state store.
        """
        store = required(self.store, "tracking a job")
        return Records(store, self.prefix, self.settings.result_ttl_s)

    @cached_property
    def once(self) -> Once:
        """What came of idempotency keys.

        Raises:
            StoreRequired: there is no state store.
        """
        store = required(self.store, "a concurrency_key or idempotency_key")
        settings = self.settings
        return Once(store.client, self.prefix, settings.lease_s, settings.idempotency_ttl_s)

    @cached_property
    def saga_records(self) -> SagaRecords:
        """What is known of sagas.

        Raises:
            StoreRequired: there is no state store.
        """
        store = required(self.store, "a saga")
        return SagaRecords(store, self.prefix, self.settings.result_ttl_s)

    @cached_property
    def dead_letters(self) -> DeadLetterOffice:
        """Dead letters and quarantine.

        Raises:
            StoreRequired: there is no state store.
        """
        store = required(self.store, "keeping dead letters")
        return DeadLetterOffice(store, self.prefix, self.settings, self)

    @cached_property
    def webhook_log(self) -> WebhookLog:
        """What was tried to deliver callbacks to URLs.

        Raises:
            StoreRequired: there is no state store.
        """
        return WebhookLog(required(self.store, "the log of callbacks to URLs"), self.prefix)

    @cached_property
    def blobs(self) -> BlobStore:
        """Files by reference."""
        return BlobStore.at(self.settings.blob_url, self.conf.broker_url)

    @cached_property
    def shard_maps(self) -> ShardMaps:
        """How many shards each queue has.

        Raises:
            StoreRequired: there is no state store.
        """
        return ShardMaps(required(self.store, "a queue with shards"), self.prefix)

    @cached_property
    def sender(self) -> Sender:
        """The producer side."""
        return Sender(
            express=self._express,
            publisher=Publisher(self),
            records=lambda: self.records,
            broker_name=lambda: sanitize_url(self.conf.broker_write_url, "**"),
            timeout_s=self.settings.publish_timeout_s,
            shard_maps=lambda: self.shard_maps,
            fallback=lambda: self._fallback,
        )

    @cached_property
    def _express(self) -> Express:
        way = ConfirmedExpress if self.amqp.net else LeasedExpress
        return way(self, self._is_open)

    @cached_property
    def outbox_database(self) -> OutboxDatabase:
        """The outbox that `outbox_url` names.

        Raises:
            SettingsError: it names none, or SQLAlchemy is not installed.
        """
        from umbel.producers.outbox import OutboxDatabase  # noqa: PLC0415  an extra

        settings = self.settings
        if settings.outbox_url is None:
            raise SettingsError(
                "which outbox? set UMBEL_OUTBOX_URL (or outbox_url=) to its database, "
                "postgresql+psycopg://host/name or sqlite:////path"
            )
        return OutboxDatabase(
            settings.outbox_url, settings.outbox_table, settings.publish_timeout_s
        )

    @cached_property
    def _fallback(self) -> OutboxFallback | None:
        if self.settings.on_unavailable == "raise":
            return None
        database = self.outbox_database
        from umbel.producers.outbox.fallback import OutboxFallback  # noqa: PLC0415  likewise

        return OutboxFallback(database)

    def uses_utc_timezone(self) -> bool:
        """Asked for each message; Celery's answer takes a lock each time."""
        return self._is_on_utc

    @cached_property
    def _is_on_utc(self) -> bool:
        return bool(super().uses_utc_timezone())

    def close(self) -> None:
        """Close this app's connections."""
        if express := self.__dict__.get("_express"):  # to make one now would read the settings
            express.close()
        super().close()


_SETTINGS = Settings.model_fields.keys() - {"queues", "jobs", "subscribers"}
"""Those that an app takes as arguments; the others are said where it declares them."""


def _refuse_unknown(options: dict[str, Any]) -> None:
    """Celery takes any name, so that a typing error would be a setting that nobody reads."""
    known = {*DEFAULTS, *inspect.signature(Celery.__init__).parameters}
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, [*_SETTINGS, *known], n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise SettingsError(f"{name}: there is no such setting, here or of Celery's{hint}")

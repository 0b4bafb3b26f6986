"""Celery's settings as Umbel ships them: safe first, each with its reason beside it.

They are defaults: what an app or a `celeryconfig` sets explicitly wins.
"""

from __future__ import annotations

import socket
import ssl
from typing import Any
from urllib.parse import urlsplit

from umbel.config.settings import Settings
from umbel.config.store import split_master

VALKEY_SCHEMES = frozenset({"redis", "rediss", "redis+socket", "sentinel"})

_TCP_USER_TIMEOUT: int | None = getattr(socket, "TCP_USER_TIMEOUT", None)  # Linux


def celery_defaults(
    settings: Settings, namespace: str, broker_url: str, store_url: str | None
) -> dict[str, Any]:
    """The defaults for one app.

    Args:
        settings: what was configured.
        namespace: the app's prefix on the broker.
        broker_url: as Celery knows it, see `umbel.config.store.server_url`.
        store_url: likewise, or None where there is no store.
    """
    scheme = urlsplit(broker_url).scheme
    specific = _valkey if scheme in VALKEY_SCHEMES else _rabbitmq
    return _common(settings, namespace, broker_url, store_url) | specific(settings, scheme)


def _common(
    settings: Settings, namespace: str, broker_url: str, store_url: str | None
) -> dict[str, Any]:
    backend, master = split_master(store_url or "disabled://")
    backend_options = {"global_keyprefix": f"{namespace}:"}
    return {
        "broker_url": broker_url,
        # Without a store, Celery's own results are off: they would need a server to be on.
        "result_backend": backend,
        "result_expires": settings.result_ttl_s,
        "result_backend_transport_options": backend_options
        | ({"master_name": master} if master else {}),
        # The contract is JSON; pickle runs code of whoever can reach the broker.
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        # A job leaves the broker when it has ended, not when it has begun.
        "task_acks_late": True,
        # One message for each place that runs: a long job never holds a short one hostage.
        "worker_prefetch_multiplier": 1,
        # A connection that was lost gives its messages back: whoever still runs them must stop,
        # or they run twice at once.
        "worker_cancel_long_running_tasks_on_connection_loss": True,
        # Losing a channel is no reason to die either (RabbitMQ's consumer timeout does that).
        "broker_channel_error_retry": True,
        "broker_connection_retry_on_startup": True,
        # For ever: a worker that gives up needs somebody to start it again.
        "broker_connection_max_retries": None,
        # A queue that nobody declared is a typing error, not a new queue.
        "task_create_missing_queues": False,
        "task_default_queue": namespace,
        # Two apps on one broker hear and control themselves only.
        "control_exchange": f"{namespace}.control",
        "event_exchange": f"{namespace}.events",
        "event_queue_prefix": f"{namespace}.events",
        # Flower and metrics see every job from its sending on.
        "worker_send_task_events": True,
        "task_send_sent_event": True,
        # A pool that is used up must not block a send for ever.
        "broker_pool_acquire_timeout": settings.publish_timeout_s,
        "broker_connection_timeout": settings.publish_timeout_s / 2,
        # One more try, at once: an idle connection may have been closed. Together with the socket
        # timeouts below this keeps a send within publish_timeout_s.
        "task_publish_retry": True,
        "task_publish_retry_policy": {
            "max_retries": 1,
            "interval_start": 0,
            "interval_step": 0.1,
            "interval_max": 0.1,
        },
        # The guarded consumer: nothing that arrives stops the worker or vanishes.
        "worker_consumer": "umbel.consumers.worker:Consumer",
    }


def _valkey(settings: Settings, scheme: str) -> dict[str, Any]:
    # A send waits three times at most: on a connection that is there, then on a new one for its
    # greeting and for the message.
    third_s = settings.publish_timeout_s / 3
    defaults: dict[str, Any] = {
        "broker_transport_options": {
            # A server that is there but does not answer must not hang a send.
            "socket_timeout": third_s,
            "socket_connect_timeout": third_s,
            "socket_keepalive": scheme != "redis+socket",
            "lease_s": settings.lease_s,
            "min_replicas": settings.min_replicas,
        },
        # What a worker holds is held by its lease, not by its connection: jobs go on through a
        # lost connection, and are cancelled when the lease is lost.
        "worker_cancel_long_running_tasks_on_connection_loss": False,
    }
    if scheme == "rediss":
        # Without this, redis-py takes any certificate.
        defaults["broker_use_ssl"] = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
        defaults["redis_backend_use_ssl"] = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
    return defaults


def _rabbitmq(settings: Settings, scheme: str) -> dict[str, Any]:
    # RabbitMQ takes a client for dead after two to three of these without a word: 15 s. Its own
    # default is 60 s, Celery's 120.
    heartbeat_s = 5
    defaults: dict[str, Any] = {
        "broker_heartbeat": heartbeat_s,
        "broker_transport_options": {
            # Off by default in py-amqp: a message that the server refused would be lost in silence.
            "confirm_publish": True,
            # Half of a send's time, so that there is time for a new connection.
            "confirm_timeout": settings.publish_timeout_s / 2,
            # py-amqp gives a connection up when a packet is not answered within a second.
            "socket_settings": {_TCP_USER_TIMEOUT: 2000 * heartbeat_s} if _TCP_USER_TIMEOUT else {},
        },
        # Replicated and durable; queues declared here carry it explicitly too.
        "task_default_queue_type": "quorum",
        "worker_detect_quorum_queues": True,
    }
    if scheme == "amqps":
        # py-amqp verifies the certificate, and whose it is only when it is told to (None stands
        # for the host of the URL).
        defaults["broker_use_ssl"] = {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None}
    return defaults

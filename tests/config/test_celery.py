"""Celery's settings as Umbel ships them: they reach every app, and what an app says wins."""

from __future__ import annotations

import socket
import ssl

import pytest
from celery.app.defaults import SETTING_KEYS

from umbel import Umbel
from umbel.config.celery import celery_defaults

AMQP = "amqp://guest@host//"
TLS = {"ssl_cert_reqs": ssl.CERT_REQUIRED}
# What each broker gets besides, written out: the reasons stand in config/celery.py.
COMMON = {
    "task_serializer": "json",
    "result_serializer": "json",
    "accept_content": ["json"],
    "task_acks_late": True,
    "worker_prefetch_multiplier": 1,
    "worker_cancel_long_running_tasks_on_connection_loss": True,
    "broker_channel_error_retry": True,
    "broker_connection_retry_on_startup": True,
    "broker_connection_max_retries": None,
    "task_create_missing_queues": False,
    "task_default_queue": "shop",
    "control_exchange": "shop.control",
    "event_exchange": "shop.events",
    "event_queue_prefix": "shop.events",
    "worker_send_task_events": True,
    "task_send_sent_event": True,
    "broker_pool_acquire_timeout": 5,
    "broker_connection_timeout": 2.5,
    "task_publish_retry": True,
    "result_expires": 3600,
    "worker_consumer": "umbel.consumers.worker:Consumer",
}
SOCKET = {
    "socket_timeout": 5 / 3,
    "socket_connect_timeout": 5 / 3,
    "lease_s": 10,
    "min_replicas": 0,
}
LEASED = {"worker_cancel_long_running_tasks_on_connection_loss": False}
VALKEY = LEASED | {"broker_transport_options": SOCKET | {"socket_keepalive": True}}
RABBITMQ = {
    "broker_heartbeat": 5,
    "broker_transport_options": {
        "confirm_publish": True,
        "confirm_timeout": 2.5,
        "socket_settings": {socket.TCP_USER_TIMEOUT: 10_000},
    },
    "task_default_queue_type": "quorum",
    "worker_detect_quorum_queues": True,
}
BROKERS = {
    "redis://host:1/2": VALKEY
    | {"broker_url": "redis://host:1/2", "result_backend": "redis://host:1/2"},
    "valkey://host:1/2": VALKEY | {"broker_url": "redis://host:1/2"},
    "rediss://host:1": VALKEY | {"broker_use_ssl": TLS, "redis_backend_use_ssl": TLS},
    "valkeys://host:1": VALKEY | {"broker_url": "rediss://host:1", "broker_use_ssl": TLS},
    "redis+socket:///run/valkey.sock": LEASED
    | {"broker_transport_options": SOCKET | {"socket_keepalive": False}},
    AMQP: RABBITMQ | {"broker_url": AMQP, "result_backend": "disabled://"},
    "amqps://host//": RABBITMQ
    | {
        "broker_url": "amqps://host//",
        "broker_use_ssl": {"cert_reqs": ssl.CERT_REQUIRED, "server_hostname": None},
    },
}


@pytest.fixture(autouse=True)
def no_environment(app_dir):
    """Without a developer's own variables."""


@pytest.mark.parametrize("broker", BROKERS)
def test_each_default_reaches_the_app(broker):
    """Those of every broker and its own."""
    conf = Umbel("shop", broker=broker).conf
    expected = COMMON | BROKERS[broker]
    assert {name: conf[name] for name in expected} == expected


@pytest.mark.parametrize("broker", BROKERS)
def test_each_default_is_a_setting_of_celerys(broker):
    """Celery takes a name that it does not know in silence, and does nothing."""
    app = Umbel("shop", broker=broker)
    names = set(celery_defaults(app.settings, "shop", app.conf.broker_url, None))
    assert names <= SETTING_KEYS | {"redis_backend_use_ssl"}  # the backend's, undocumented there
    assert {name: app.conf[name] for name in names - {"result_backend"}}


def test_a_store_of_its_own_keeps_the_results():
    """Results and records are where the store is."""
    conf = Umbel("shop", broker=AMQP, store_url="valkey://store/1").conf
    assert conf.result_backend == "redis://store/1"
    assert conf.result_backend_transport_options == {"global_keyprefix": "shop:"}


@pytest.mark.parametrize("broker", ["redis://host:1/2", AMQP])
def test_what_the_app_says_wins(broker):
    """As an argument and by attribute: a default is a default."""
    for name in ("worker_prefetch_multiplier", "broker_transport_options", "broker_heartbeat"):
        argument = Umbel("shop", broker=broker, **{name: 7})
        attribute = Umbel("shop", broker=broker)
        setattr(attribute.conf, name, 7)
        assert [app.conf[name] for app in (argument, attribute)] == [7, 7]


@pytest.mark.parametrize("broker", ["redis://host:1/2", AMQP])
def test_one_transport_option_leaves_the_others(broker):
    """Who says something of one must not lose the bounds of a send."""
    usual = Umbel("shop", broker=broker).connection_for_write().transport_options
    app = Umbel("shop", broker=broker, broker_transport_options={"visibility_timeout": 9})
    assert app.connection_for_write().transport_options == usual | {"visibility_timeout": 9}


def test_what_a_configuration_object_says_wins():
    """The same for `config_from_object` and a `celeryconfig`."""
    app = Umbel("shop", broker="redis://host:1/2")
    app.config_from_object({"worker_prefetch_multiplier": 7})
    assert app.conf.worker_prefetch_multiplier == 7


def test_a_configuration_object_may_have_the_old_names():
    """As Celery takes them: ours beside them are no mixture."""
    app = Umbel("shop", broker="redis://host:1/2")
    app.config_from_object({"CELERYD_PREFETCH_MULTIPLIER": 7, "CELERY_TIMEZONE": "Europe/Berlin"})
    assert (app.conf.worker_prefetch_multiplier, app.conf.timezone) == (7, "Europe/Berlin")
    assert app.conf.task_acks_late


def test_the_settings_are_there_from_the_first_moment():
    """Whoever looks while they are loaded, a hook or another thread, sees all of them or waits."""
    app = Umbel("shop", broker="redis://host:1/2")
    seen = []

    @app.on_after_configure.connect
    def look(sender, **_):
        seen.extend([sender.conf.broker_url, sender.conf.task_acks_late])

    assert app.conf.broker_url
    assert seen == ["redis://host:1/2", True]


def test_the_settings_reach_celerys():
    """A time is divided among the waits of a send."""
    conf = Umbel("shop", broker="redis://host", publish_timeout_s=9, result_ttl_s=60).conf
    assert conf.broker_transport_options["socket_timeout"] == 3
    assert (conf.broker_pool_acquire_timeout, conf.result_expires) == (9, 60)

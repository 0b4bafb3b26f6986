"""Settings: one object, from the environment, then from code, then the defaults."""

from __future__ import annotations

import pytest

from umbel import Settings, SettingsError, Umbel


@pytest.fixture(autouse=True)
def no_environment(app_dir):
    """Without a developer's own variables."""


def test_the_environment_wins_over_code_and_code_over_defaults(monkeypatch):
    """So that one program runs unchanged in every place."""
    assert Settings.load().publish_timeout_s == 5
    assert Settings.load(publish_timeout_s=7).publish_timeout_s == 7
    monkeypatch.setenv("UMBEL_PUBLISH_TIMEOUT_S", "9")
    assert Umbel("shop", publish_timeout_s=7).settings.publish_timeout_s == 9


def test_a_wrong_value_says_which_where_from_and_what_is_allowed(monkeypatch):
    """All wrong ones at once, each with its source."""
    monkeypatch.setenv("UMBEL_BROKER_URL", "http://example.com")
    monkeypatch.setenv("UMBEL_MAX_DELIVERIES", "0")
    with pytest.raises(SettingsError) as caught:
        Settings.load(publish_timeout_s="soon", colour="red")
    text = str(caught.value)
    assert "broker_url from the environment (UMBEL_BROKER_URL) is 'http://example.com'" in text
    assert "a URL with one of the schemes embedded, redis" in text
    assert "max_deliveries from the environment (UMBEL_MAX_DELIVERIES) is '0'" in text
    assert "greater than 0" in text
    assert "publish_timeout_s from the code (publish_timeout_s=) is 'soon'" in text
    assert "colour from the code (colour=): there is no such setting; there are: blob_url" in text


def test_a_mistyped_name_is_refused():
    """Celery would take it, and nobody would ever read it."""
    with pytest.raises(SettingsError, match="did you mean 'publish_timeout_s'"):
        Umbel("shop", publish_timeot_s=3)
    with pytest.raises(SettingsError, match="did you mean 'worker_prefetch_multiplier'"):
        Umbel("shop", worker_prefetch_multplier=3)


def test_the_embedded_server_can_be_forbidden(monkeypatch):
    """A deployment that forgot its broker must not run on one that is for one machine."""
    monkeypatch.setenv("UMBEL_REQUIRE_BROKER", "1")
    with pytest.raises(SettingsError, match="set UMBEL_BROKER_URL"):
        _ = Umbel("shop").conf.broker_url
    assert Umbel("shop", broker="redis://host").conf.broker_url == "redis://host"


def test_a_local_blob_store_needs_a_local_broker():
    """Workers on other hosts could not read the files; the error names the setting."""
    with pytest.raises(SettingsError, match="set UMBEL_BLOB_URL"):
        _ = Umbel("shop", broker="redis://elsewhere:6379/0").blobs
    remote = Umbel("shop", broker="redis://elsewhere:6379/0", blob_url="s3://bucket/files")
    assert remote.blobs.url == "s3://bucket/files"


def test_a_wrong_value_does_not_show_a_password(monkeypatch):
    """Errors end in logs."""
    monkeypatch.setenv("UMBEL_BROKER_URL", "https://user:hunter2@host:1/0")
    with pytest.raises(SettingsError) as caught:
        Settings.load(store_url="sqlite://:hunter2@host")
    assert "hunter2" not in str(caught.value)
    assert "broker_url from the environment (UMBEL_BROKER_URL) is 'https://***@host:1/0'" in str(
        caught.value
    )
    assert "store_url from the code (store_url=) is 'sqlite://***@host'" in str(caught.value)


def test_the_namespace_is_the_apps_name_or_the_setting():
    """Two apps on one broker keep apart."""
    assert Umbel("my shop", broker="redis://host").prefix == "my-shop"
    assert Umbel("shop", broker="redis://host", namespace="live").prefix == "live"
    with pytest.raises(SettingsError, match="namespace from the code"):
        _ = Umbel("shop", namespace="a b").settings

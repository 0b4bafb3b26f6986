"""Files: umbel.toml and [tool.umbel], below the environment and above code."""

from __future__ import annotations

import pytest

from umbel import Settings, SettingsError, Umbel


@pytest.fixture
def project(app_dir):
    """A directory of a project, the working directory; without a developer's own variables."""
    return app_dir


def test_the_environment_wins_over_files_and_files_over_code(project, monkeypatch):
    """And umbel.toml over pyproject.toml: key by key, so that each adds to the others."""
    table = "[tool.umbel]\nlease_s = 3\ngrace_s = 3\nresult_ttl_s = 3"
    (project / "pyproject.toml").write_text(table)
    (project / "umbel.toml").write_text("lease_s = 2\ngrace_s = 2")
    monkeypatch.setenv("UMBEL_LEASE_S", "1")
    app = Umbel("shop", lease_s=4, grace_s=4, result_ttl_s=4, publish_timeout_s=4)
    settings = app.settings
    found = settings.lease_s, settings.grace_s, settings.result_ttl_s, settings.publish_timeout_s
    assert found == (1, 2, 3, 4)
    assert settings.max_deliveries == 3


def test_sections_are_merged_key_by_key(project, monkeypatch):
    """The environment has them as JSON."""
    (project / "umbel.toml").write_text("[queues.images]\nprefetch = 2\npriorities = true")
    monkeypatch.setenv("UMBEL_QUEUES", '{"images": {"prefetch": 5}}')
    assert Settings.load().queues["images"].model_dump(exclude_unset=True) == {
        "prefetch": 5,
        "priorities": True,
    }


def test_the_nearest_project_upwards_is_read(project, monkeypatch):
    """And only that."""
    (project / "umbel.toml").write_text("lease_s = 2")
    inner = project / "inner" / "deep"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert Settings.load().lease_s == 2
    (project / "inner" / "pyproject.toml").write_text("[project]\nname = 'another'")
    assert Settings.load().lease_s == 10


def test_a_file_can_be_named(project, monkeypatch):
    """In place of the project's; one that is not there is an error."""
    (project / "umbel.toml").write_text("lease_s = 2")
    elsewhere = project / "elsewhere.toml"
    elsewhere.write_text("grace_s = 2")
    monkeypatch.setenv("UMBEL_CONFIG", str(elsewhere))
    assert (Settings.load().lease_s, Settings.load().grace_s) == (10, 2)
    elsewhere.unlink()
    with pytest.raises(SettingsError, match="UMBEL_CONFIG=.*elsewhere.toml: there is no such file"):
        Settings.load()


def test_what_is_no_toml_names_file_and_line(project):
    """As do a file that is no text, and a table that is none."""
    (project / "umbel.toml").write_text("lease_s = 2\ngrace_s = = 2")
    with pytest.raises(SettingsError, match=r"umbel.toml is no TOML: .*\(at line 2, column 11\)"):
        Settings.load()
    (project / "umbel.toml").write_bytes(b"\xff")
    with pytest.raises(SettingsError, match="umbel.toml cannot be read: .*utf-8"):
        Settings.load()
    (project / "umbel.toml").unlink()
    for text in ("tool = 3", "[tool]\numbel = 3"):
        (project / "pyproject.toml").write_text(text)
        with pytest.raises(SettingsError, match=r"pyproject.toml: \[tool.umbel\] is no table"):
            Settings.load()


def test_each_mistake_names_file_and_key_and_what_is_allowed(project, monkeypatch):
    """All at once, with the nearest match, and without a password."""
    (project / "umbel.toml").write_text(
        """
        broker_url = "http://user:hunter2@host"
        lease = 3
        publish_timeout_s = "soon"
        queue.images.prefetch = 1
        [queues.images]
        prefetc = 3
        shards = 0
        [jobs."image.resize"]
        retry = { delays = [1] }
        timeout_s = [5]
        rate_limit = "often"
        [subscribers.book]
        queue = "books"
        retry.delays_s = [1, -1]
        """
    )
    monkeypatch.setenv("UMBEL_JOBS", '{"image.resize": {"max_deliveries": 0}}')
    with pytest.raises(SettingsError) as caught:
        Settings.load()
    text = str(caught.value)
    file = f"from the file {project / 'umbel.toml'}"
    assert "hunter2" not in text
    for line in (
        f"lease {file}: there is no such setting, did you mean 'lease_s'?; there are: blob_url",
        f"publish_timeout_s {file} is 'soon'; expected: Input should be a valid number",
        f"queue {file}: there is no such setting, did you mean 'queues'?",
        f"queues.images.prefetc {file}: there is no such setting, did you mean 'prefetch'?; "
        "there are: max_deliveries, prefetch, priorities, shards",
        f"queues.images.shards {file} is 0; expected: Input should be greater than 0",
        f'jobs."image.resize".retry.delays {file}: there is no such setting, '
        "did you mean 'delays_s'?; there are: delays_s, immediate",
        f'jobs."image.resize".timeout_s {file} is [5]; expected:',
        f"jobs.\"image.resize\".rate_limit {file} is 'often'; expected:",
        'jobs."image.resize".max_deliveries from the environment (UMBEL_JOBS) is 0',
        f"subscribers.book.queue {file}: there is no such setting",
        f"subscribers.book.retry.delays_s.1 {file} is -1; expected:",
    ):
        assert line in text, (line, text)


def test_a_variable_that_is_no_json_is_named(project, monkeypatch):
    """Sections in the environment are JSON."""
    monkeypatch.setenv("UMBEL_JOBS", '{"image.resize"')
    with pytest.raises(SettingsError, match='"jobs".*Expecting'):
        Settings.load()

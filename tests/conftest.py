"""Registers the infrastructure of `tests/support`; in CI, turns every skip into a failure."""

from __future__ import annotations

import os
import signal
from collections.abc import Generator
from typing import TypeVar

import pytest

Report = TypeVar("Report", pytest.TestReport, pytest.CollectReport)

pytest.register_assert_rewrite("support")


def pytest_configure(config: pytest.Config) -> None:
    """Register after the entry points, so that these fixtures win over pytest-celery's."""
    # What a shell starts in the background ignores Ctrl-C, and so would all that the tests start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    from support import nodes, postgres, process, receiver, servers, workers

    for module in (process, servers, postgres, workers, nodes, receiver):
        config.pluginmanager.register(module)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A server that is missing in CI is a failure."""
    report = yield
    return _failed_in_ci(report)


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a module that skips itself."""
    report = yield
    return _failed_in_ci(report)


def _failed_in_ci(report: Report) -> Report:
    if os.environ.get("CI") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which CI does not allow: {report.longrepr}"
    return report

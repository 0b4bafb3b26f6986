"""The stages of the suite, the marker of its promises, and the table that is made of its run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import kombu.pools
import pytest
from support.process import RUN_MARK
from support.servers import RabbitMQ

from conformance.stages import BROKERS, HERE, Stage, stage_on
from conformance.table import Row, write

_rows: list[Row] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    """The page to write."""
    parser.addoption("--conformance-page", type=Path, help="write the table into this page")


def pytest_configure(config: pytest.Config) -> None:
    """Announce the marker."""
    config.addinivalue_line(
        "markers", "promise(section): of the design; what is promised is the test's first line"
    )


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Each promise on each broker, and those of a broker together."""
    if "broker_name" in metafunc.fixturenames:
        marks = [[pytest.mark.xdist_group(broker.split()[-1])] for broker in BROKERS]
        params = [pytest.param(broker, marks=m) for broker, m in zip(BROKERS, marks, strict=True)]
        metafunc.parametrize("broker_name", params, scope="package", indirect=True)


@pytest.fixture(scope="package")
def broker_name(request: pytest.FixtureRequest) -> str:
    """One of `BROKERS`."""
    name: str = request.param
    return name


@pytest.fixture(scope="package")
def _stages(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Any:
    """Opens stages without a developer's own settings."""
    base = tmp_path_factory.mktemp("conformance")

    def node() -> RabbitMQ:
        rabbitmq: RabbitMQ = request.getfixturevalue("_rabbitmq_node")
        return rabbitmq

    with pytest.MonkeyPatch.context() as environment:
        for name in os.environ:
            if name.startswith(("UMBEL_", "CELERY_")) and name != RUN_MARK:
                environment.delenv(name)
        environment.syspath_prepend(HERE)
        yield lambda broker, name: stage_on(broker, base / name, node)
    kombu.pools.reset()


@pytest.fixture(scope="package")
def stage(broker_name: str, _stages: Any) -> Iterator[Stage]:
    """The application with a worker that all tests share: nothing may be killed here."""
    with _stages(broker_name, f"shared-{broker_name.rsplit(maxsplit=1)[-1]}") as stage:
        stage.start_worker(concurrency=2)
        yield stage
        print(stage.logs())  # shown when a test fails


@pytest.fixture
def fresh(broker_name: str, _stages: Any, request: pytest.FixtureRequest) -> Iterator[Stage]:
    """The application on a broker of the test's own, without a worker: anything may be killed."""
    with ExitStack() as stack:
        name = f"{request.function.__name__[5:30]}-{broker_name.rsplit(maxsplit=1)[-1]}"
        stage = stack.enter_context(_stages(broker_name, name))
        stack.callback(lambda: print(stage.logs()))  # shown when the test fails
        yield stage


def pytest_runtest_setup(item: pytest.Item) -> None:
    """What the table says of it travels with the report."""
    if marker := item.get_closest_marker("promise"):
        broker = item.callspec.params["broker_name"]  # type: ignore[attr-defined]
        promised = (item.function.__doc__ or "").partition("\n\n")[0]  # type: ignore[attr-defined]
        promised = " ".join(promised.split())
        assert promised, f"{item.nodeid}: its docstring says what is promised"
        item.user_properties.append(("promise", [marker.args[0], promised, broker]))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """One cell of the table."""
    told = dict(report.user_properties)
    if "promise" in told and (report.when == "call" or report.outcome != "passed"):
        why = told.get("not_there") or getattr(report, "wasxfail", "")
        _rows.append(Row(*told["promise"], report.outcome, why))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """The process that has all reports writes the page."""
    page = session.config.getoption("--conformance-page", None)
    if page and not hasattr(session.config, "workerinput"):
        write(_rows, page)

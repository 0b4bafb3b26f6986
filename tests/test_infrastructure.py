"""The test infrastructure keeps its own promises, shown with plain Celery."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import ModuleType

import psutil
import pytest
import redis
from pytest_celery import CeleryTestSetup
from pytest_celery.vendors.worker.tasks import add
from support.process import LocalProcess, alive, eventually, left_behind
from support.servers import RabbitMQ, Valkey
from support.workers import Worker

SHOP = """
    import os
    import subprocess
    from celery import Celery

    app = Celery(broker=os.environ["UMBEL_BROKER_URL"], backend=os.environ["UMBEL_BROKER_URL"])

    @app.task
    def add(x, y):
        return x + y

    @app.task
    def nap():
        print("napping")
        subprocess.run(["sleep", "600"])
"""

# A main process with one child in its session and one in a session of its own.
FAMILY = """
import subprocess, sys, time
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
subprocess.Popen(sleep)
escaped = subprocess.Popen(sleep, start_new_session=sys.argv[1:] == ["setsid"])
print(f"escaped={escaped.pid} ready", flush=True)
time.sleep(600)
"""

WriteApp = Callable[..., ModuleType]
StartWorker = Callable[..., Worker]


@pytest.fixture
def shop(write_app: WriteApp) -> ModuleType:
    return write_app(SHOP)


def test_stock_setup_runs_a_task(celery_setup: CeleryTestSetup) -> None:
    """pytest-celery's own setup is ready by every check it knows, and returns a result."""
    assert celery_setup.ready(ping=True, control=True, docker=True)
    assert add.s(1, 2).apply_async(queue=celery_setup.worker.worker_queue).get(timeout=10) == 3


def test_stock_worker_is_killed_and_restarted(celery_setup: CeleryTestSetup) -> None:
    """A stock worker node survives its kill: restarted, it is ready anew and takes tasks."""
    worker = celery_setup.worker
    worker.kill()
    assert worker.container.status == "exited"
    worker.restart()
    assert worker.logs().count("ready.") == 2
    assert {info["name"] for info in worker.get_running_processes_info(["name"])}
    assert add.s(1, 2).apply_async(queue=worker.worker_queue).get(timeout=10) == 3


def test_stock_broker_keeps_its_address(celery_setup: CeleryTestSetup) -> None:
    """A stock broker node that is restarted has the same URL and serves the same worker."""
    url = celery_setup.broker.config()["url"]
    celery_setup.broker.restart()
    assert celery_setup.broker.config()["url"] == url
    assert add.s(1, 2).apply_async(queue=celery_setup.worker.worker_queue).get(timeout=10) == 3


@pytest.mark.parametrize("pool", ["prefork", "threads", "solo"])
def test_worker_runs_a_written_app(pool: str, shop: ModuleType, start_worker: StartWorker) -> None:
    """One file is the producer's module here and the worker's app there, on every pool."""
    worker = start_worker(shop, pool=pool, concurrency=2, queues=["sums"])
    assert shop.add.apply_async((1, 2), queue="sums").get(timeout=10) == 3
    assert len(worker.children()) == (2 if pool == "prefork" else 0)


def test_apps_of_one_name_are_two_modules(write_app: WriteApp) -> None:
    """A module's name is never given twice, so no test sees another test's app."""
    first, second = write_app("WHO = 1"), write_app("WHO = 2")
    assert (first.WHO, second.WHO) == (1, 2)
    assert first.__name__ != second.__name__


def test_killed_worker_is_noticed(shop: ModuleType, start_worker: StartWorker) -> None:
    """`kill -9` leaves what a job had started (Celery ends its children); restart clears it."""
    worker = start_worker(shop)
    shop.nap.delay()
    worker.wait_for_log("napping")
    first = worker.pid
    worker.kill()
    assert worker.returncode == -signal.SIGKILL
    assert not worker.running
    (orphan,) = eventually(lambda: len(worker.members()) == 1 and worker.members())
    assert orphan.name() == "sleep"
    worker.restart()
    assert worker.pid != first
    assert not alive(orphan)
    assert shop.add.delay(1, 2).get(timeout=10) == 3


def test_terminated_worker_ends_cleanly(shop: ModuleType, start_worker: StartWorker) -> None:
    """SIGTERM is a warm shutdown with exit status 0."""
    worker = start_worker(shop)
    assert worker.stop() == 0
    assert worker.members() == []


@pytest.mark.parametrize("end", [LocalProcess.kill, LocalProcess.stop])
def test_broker_restart_keeps_queued_messages(
    end: Callable[[Valkey], object], shop: ModuleType, start_worker: StartWorker, valkey: Valkey
) -> None:
    """What is queued outlives the server, killed or stopped; port and data are the same."""
    results = [shop.add.delay(n, n) for n in range(20)]
    end(valkey)
    assert not valkey.running
    valkey.restart()
    assert valkey.client().llen("celery") == 20
    start_worker(shop)
    # Read, not awaited: after a reconnection Celery 5.7 reads the store and then subscribes, and
    # `get` never sees a result that is stored in between (backends/redis.py, _reconnect_pubsub).
    eventually(lambda: all(result.ready() for result in results))
    assert [result.result for result in results] == [n + n for n in range(20)]


def test_worker_survives_a_broker_restart(
    shop: ModuleType, start_worker: StartWorker, valkey: Valkey
) -> None:
    """A worker reconnects to the restarted broker, for it keeps its address."""
    worker = start_worker(shop)
    valkey.kill()
    worker.wait_for_log("Connection to broker lost")
    valkey.restart()
    assert shop.add.delay(1, 2).get(timeout=20) == 3


def test_frozen_server_is_half_open(valkey: Valkey) -> None:
    """Frozen, a server accepts connections and answers nothing; thawed, it answers again."""
    client = valkey.client(socket_timeout=0.1, retry=None)
    assert client.ping()
    valkey.freeze()
    assert valkey.running
    with pytest.raises(redis.TimeoutError):
        client.ping()
    valkey.thaw()
    assert valkey.client().ping()


def test_frozen_worker_resumes(shop: ModuleType, start_worker: StartWorker) -> None:
    """A frozen worker takes nothing, and takes it up when it is thawed."""
    worker = start_worker(shop)
    worker.freeze()
    result = shop.add.delay(1, 2)
    assert {member.status() for member in worker.members()} == {psutil.STATUS_STOPPED}
    assert not result.ready()
    worker.thaw()
    assert result.get(timeout=10) == 3


def test_urls_are_never_given_twice(start_valkey: Callable[..., Valkey]) -> None:
    """Two servers of one test share neither URL nor data, and take options of their own."""
    one, two = start_valkey(), start_valkey("--maxmemory", "10mb")
    one.client().set("key", "value")
    assert one.url != two.url
    assert two.client().get("key") is None
    assert two.client().config_get("maxmemory") == {"maxmemory": "10485760"}


def test_rabbitmq_shows_its_queues(rabbitmq: RabbitMQ) -> None:
    """Each test has a vhost of its own; what waits and what somebody holds can be seen."""
    assert rabbitmq.waiting("jobs") == []
    client = rabbitmq.client()
    jobs = client.SimpleQueue("jobs")
    rabbitmq.push("jobs", b"1", headers={"number": 1})
    rabbitmq.push("jobs", b"2")
    assert [(one.headers, one.body) for one in rabbitmq.waiting("jobs")] == [
        ({"number": 1}, b"1"),
        ({}, b"2"),
    ]
    jobs.get(timeout=10)
    eventually(lambda: sum(rabbitmq.counts("jobs")) == 2 and rabbitmq.counts("jobs")[1])


def test_a_port_is_claimed_across_processes(valkey: Valkey) -> None:
    """No other test process is given this one's port, not even while its server is down."""
    valkey.stop()
    script = f"""
import support.servers as servers
servers.PORTS = range({valkey.port}, {valkey.port} + 1)
servers.claim_port()
"""
    other = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "no free port" in other.stderr


def test_logs_of_an_earlier_start_do_not_count(tmp_path: Path) -> None:
    """Readiness is read from the last start only, and all starts stay in the log."""
    script = (
        "import os, sys; os.path.exists('spoilt') or print('ready', flush=True); sys.stdin.read()"
    )
    script += "; os.path.exists('spoilt') or __import__('signal').pause()"
    process = LocalProcess(
        name="once", command=[sys.executable, "-c", script], cwd=tmp_path, ready="ready"
    )
    with closing(process.start()):
        process.restart()
        assert process.logs().count("ready") == 2
        assert process.logs(since_last_start=True).count("ready") == 1
        (tmp_path / "spoilt").touch()
        with pytest.raises(AssertionError, match="once exited 0"):
            process.restart()


def test_close_ends_the_session_and_nothing_else(tmp_path: Path) -> None:
    """`close` kills children and orphans of its own session; others are found by their mark."""
    before = {process.pid for process in left_behind()}
    stranger = subprocess.Popen([sys.executable, "-c", FAMILY, "setsid"], cwd=tmp_path)
    family = LocalProcess(
        name="family", command=[sys.executable, "-c", FAMILY, "setsid"], cwd=tmp_path, ready="ready"
    )
    try:
        with closing(family.start()):
            escaped = int(family.logs().partition("escaped=")[2].split()[0])
            assert len(family.children()) == 1
            family.kill()
            assert len(family.members()) == 1
        assert family.members() == []
        assert stranger.poll() is None
        assert escaped in {process.pid for process in left_behind()}
    finally:
        for process in left_behind():
            if process.pid not in before:
                process.kill()
        stranger.wait()
    eventually(lambda: {process.pid for process in left_behind()} <= before)


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_processes_die_with_pytest(tmp_path: Path) -> None:
    """When pytest itself is killed, so are the main processes that it started."""
    script = """
import sys, time
from pathlib import Path
from support.process import LocalProcess
sleep = [sys.executable, "-c", "print('ready', flush=True); __import__('time').sleep(600)"]
child = LocalProcess(name="sleep", command=sleep, cwd=Path.cwd(), ready="ready")
print(child.start().pid, flush=True)
time.sleep(600)
"""
    env = {"PYTHONPATH": str(Path(__file__).parent)}
    pytest_like = LocalProcess(
        name="parent", command=[sys.executable, "-c", script], cwd=tmp_path, env=env, ready="\n"
    )
    with closing(pytest_like.start()):
        child = psutil.Process(int(pytest_like.logs()))
        pytest_like.kill()
        eventually(lambda: not alive(child))


def test_eventually_fails_with_what_was_expected() -> None:
    """A deadline that passes names the expectation and the last value."""
    started = time.monotonic()
    with pytest.raises(AssertionError, match=r"not within 0.1 s: three \(last: 0\)"):
        eventually(lambda: 0, 0.1, "three")
    assert time.monotonic() - started < 1


def test_docker_is_never_asked(request: pytest.FixtureRequest) -> None:
    """A fixture that wants a container fails, and says where to replace it."""
    with pytest.raises(pytest.fail.Exception, match=r"support/nodes\.py"):
        request.getfixturevalue("docker_client")


def test_a_skip_in_ci_is_a_failure(tmp_path: Path) -> None:
    """A test that skips for want of a server fails in CI; an expected failure does not."""
    (tmp_path / "test_it.py").write_text("""
import pytest

def test_skips():
    pytest.skip("no server")

@pytest.mark.xfail
def test_known():
    assert False
""")
    (tmp_path / "conftest.py").write_text((Path(__file__).parent / "conftest.py").read_text())
    run = subprocess.run(
        [
            sys.executable,
            *["-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"],
            tmp_path,
        ],
        env=os.environ | {"CI": "true", "PYTHONPATH": str(Path(__file__).parent)},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 1 xfailed" in run.stdout
    assert "skipped, which CI does not allow" in run.stdout

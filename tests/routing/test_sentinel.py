"""Sentinel: the master dies, and everybody goes on with the next."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from types import ModuleType

import kombu.pools
import pytest
from kombu.exceptions import OperationalError
from redis import Redis
from support.process import LocalProcess, eventually
from support.servers import Valkey, claim_port, valkey_binary

from umbel import BrokerUnavailable, SettingsError, Umbel
from umbel.config.store import Store

APP = """
import os, time
from pathlib import Path
from umbel import Message, Umbel

app = Umbel("shop", min_replicas=1, lease_s=2)
MARKS = Path(__file__).parent / "marks"

class Say(Message, name="shop.say", version=1):
    number: int

@app.job
def say(message: Say) -> int:
    file = os.open(MARKS, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    os.write(file, f"{message.number}\\n".encode())
    os.close(file)
    time.sleep(0.02)
    return message.number
"""


class Sentinel(LocalProcess):
    """One that watches a master and its replicas."""

    def __init__(self, directory: Path, number: int, master: Valkey) -> None:
        self.port = claim_port()
        file = directory / f"sentinel{number}.conf"
        file.write_text(
            f"port {self.port}\nbind 127.0.0.1\n"
            f"sentinel monitor main 127.0.0.1 {master.port} 2\n"
            "sentinel down-after-milliseconds main 500\n"
            "sentinel failover-timeout main 4000\n"
        )
        super().__init__(
            name=f"sentinel{number}",
            command=[valkey_binary(), str(file), "--sentinel"],
            cwd=directory,
            ready="+monitor master main",
        )


class Cluster:
    """A master, two replicas and three Sentinels.

    Args:
        directory: of all their files.
    """

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        def start(name: str, *options: str) -> Valkey:
            (directory / name).mkdir()
            return stack.enter_context(closing(Valkey(directory / name, *options))).start()

        self.master = start("master")
        follows = ("--replicaof", "127.0.0.1", str(self.master.port))
        self.replicas = [start(name, *follows) for name in ("one", "two")]
        eventually(self._replicated, 40, "two replicas")
        sentinels = [Sentinel(directory, number, self.master) for number in range(3)]
        for sentinel in sentinels:
            stack.enter_context(closing(sentinel)).start()
        hosts = [f"sentinel://127.0.0.1:{sentinel.port}" for sentinel in sentinels]
        self.url = ";".join([f"{hosts[0]}/0", *hosts[1:]]) + "?master_name=main"
        asked = Redis(host="127.0.0.1", port=sentinels[0].port, decode_responses=True)

        def ready() -> bool:
            [state] = asked.sentinel_masters().values()
            return (state["num-other-sentinels"], state["num-slaves"]) == (2, 2)

        with closing(asked):
            eventually(ready, 40, "Sentinels that know of all")

    def _replicated(self) -> bool:
        info = self.master.client().info("replication")
        return [info.get(f"slave{n}", {}).get("state") for n in (0, 1)] == ["online"] * 2


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    """Gone with the test."""
    with ExitStack() as stack:
        (directory := tmp_path / "cluster").mkdir()
        cluster = Cluster(directory, stack)
        yield cluster
    kombu.pools.reset()


@pytest.fixture
def shop(cluster, write_app, start_worker, monkeypatch) -> ModuleType:
    """The app above; after the others, which set the same variable."""
    monkeypatch.setenv("UMBEL_BROKER_URL", cluster.url)
    return write_app(APP)


def done(shop: ModuleType) -> set[int]:
    """The numbers that were said."""
    return set(map(int, shop.MARKS.read_text().split())) if shop.MARKS.exists() else set()


def test_the_master_dies_in_the_middle_of_it(cluster, shop, start_worker):
    """What was accepted is done: a send waits until a replica has it. Handles go on too."""
    start_worker(shop, concurrency=2)
    accepted = set()
    tracked = shop.say.request(shop.Say(number=0))
    assert tracked.result(10) == 0

    def send(number: int) -> bool:
        with suppress(BrokerUnavailable):
            shop.say.send(shop.Say(number=number))
            accepted.add(number)
        return number in accepted

    assert all(send(number) for number in range(1, 100))
    cluster.master.kill()
    for number in range(100, 200):
        eventually(lambda number=number: send(number), 30, "a send after the failover")
    eventually(lambda: accepted <= done(shop), 40, lambda: f"missing: {accepted - done(shop)}")
    assert shop.say.request(shop.Say(number=1000)).result(20) == 1000
    assert asyncio.run(shop.say.handle(tracked.id).aresult(5)) == 0


def test_without_a_replica_nothing_is_accepted(cluster, shop):
    """`min_replicas` says so, and within the time of a send."""
    shop.say.send(shop.Say(number=1))
    for replica in cluster.replicas:
        replica.freeze()
    try:
        with pytest.raises(BrokerUnavailable, match="on 0 replicas, min_replicas=1"):
            shop.say.send(shop.Say(number=2))
        with pytest.raises(OperationalError, match="on 0 replicas, min_replicas=1"):
            shop.say.delay(shop.Say(number=2))  # Celery's way, Celery's error
        assert cluster.master.client().llen("shop") == 3  # each was sent once
    finally:
        for replica in cluster.replicas:
            replica.thaw()
    shop.say.send_many([shop.Say(number=3)])


def test_a_url_that_names_no_master_says_what_is_missing():
    """Celery's way, by `broker_transport_options`, is for the broker alone."""
    with pytest.raises(SettingsError, match="which master.*master_name=mymaster"):
        _ = Store("sentinel://localhost:26379", 1).client
    app = Umbel("shop", broker="sentinel://localhost:26379?master_name=main")
    connection = app.connection_for_write()
    assert connection.transport_options["master_name"] == "main"
    assert app.conf.result_backend_transport_options["master_name"] == "main"

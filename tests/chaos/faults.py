"""What can go wrong, each as a function that does it to a scene and returns its `Strike`."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

import psutil
from support.process import LocalProcess, eventually
from support.servers import Valkey
from support.workers import Worker

from chaos.brokers import cut
from chaos.harness import Scene, start_together
from chaos.memory import limited_memory
from chaos.tally import Strike


def kill_worker(scene: Scene) -> Strike:
    """`kill -9` of a worker's main process, whose children go with it; a new one follows."""
    worker = scene.random.choice(scene.workers)
    strike = _strike([worker])
    worker.kill()
    _await_end([worker])
    strike = replace(strike, over=time.monotonic())
    start_together([worker])
    return strike


def kill_all_workers(scene: Scene) -> Strike:
    """`kill -9` of every process of every worker at one moment; new ones follow."""
    strike = _strike(scene.workers)
    for worker in scene.workers:
        for member in worker.members():
            member.kill()
    _await_end(scene.workers)
    start_together(scene.workers)
    # Recovery begins with somebody who recovers.
    return replace(strike, over=time.monotonic())


def kill_child(scene: Scene) -> Strike:
    """`kill -9` of one child of a pool, as the kernel does when memory runs out."""
    child = scene.random.choice([one for worker in scene.workers for one in worker.children()])
    at = time.monotonic()
    child.kill()
    return Strike(at, time.monotonic(), frozenset({child.pid}))


def use_up_memory(scene: Scene) -> Strike:
    """A job takes more memory than its worker may have: the kernel ends its process, twice."""
    at = time.monotonic()
    with ExitStack() as limits:
        for worker in scene.workers:
            limits.enter_context(limited_memory(worker, 300 << 20))
        job = scene.doom(scene.app.hungry)

        def ended_twice() -> bool:
            runs = scene.effects.of(job.number)
            return len(runs) > 1 and not any(psutil.pid_exists(run.pid) for run in runs)

        eventually(ended_twice, 30, "two runs that the kernel ended")
    pids = frozenset(run.pid for run in scene.effects.of(job.number))
    return Strike(at, time.monotonic(), pids)


def stop_worker(scene: Scene) -> Strike:
    """SIGSTOP of a worker for longer than its lease, as of a machine that was suspended."""
    worker = scene.random.choice(scene.workers)
    with _stopped(worker):
        strike = _strike([worker])
        time.sleep(2 * scene.lease_s)
    return strike


def pause_worker(scene: Scene) -> Strike:
    """SIGSTOP of a worker for half its lease."""
    at = time.monotonic()
    with _stopped(scene.random.choice(scene.workers)):
        time.sleep(scene.lease_s / 2)
    return Strike(at, time.monotonic())


def terminate_worker(scene: Scene) -> Strike:
    """SIGTERM of a worker; a new one follows when it has ended."""
    return _restart([scene.random.choice(scene.workers)])


def rolling_restart(scene: Scene) -> Strike:
    """SIGTERM and a new start of one worker after the other."""
    return _restart(scene.workers)


def outlast_lease(scene: Scene) -> Strike:
    """Nothing happens to a job of ten leases."""
    at = time.monotonic()
    job = scene.send(10 * scene.lease_s, tracked=True)
    long_s = 11 * scene.lease_s + 5
    eventually(lambda: any(run.done_at for run in scene.effects.of(job.number)), long_s)
    return Strike(at, at)


def cut_connections(scene: Scene, times: int = 5) -> Strike:
    """The broker closes all connections of a worker, several times in a row."""
    worker = scene.random.choice(scene.workers)
    strikes = []
    for _ in range(times):
        strikes.append(_outage(scene, [worker]))  # with the children that it has by now
        cut(scene.broker, worker.members())
        time.sleep(scene.lease_s / 4)
    pids = frozenset().union(*(strike.pids for strike in strikes))
    return Strike(strikes[0].at, time.monotonic(), pids)


def kill_broker(scene: Scene, down_s: float = 0.5) -> Strike:
    """`kill -9` of the broker, which is started again on its data."""
    strike = _outage(scene, scene.workers)
    scene.broker.kill()
    time.sleep(down_s)
    scene.broker.start()
    return replace(strike, over=time.monotonic())


def freeze_broker(scene: Scene, down_s: float = 2.0) -> Strike:
    """SIGSTOP of the broker: connections stay open, and nothing answers."""
    strike = _outage(scene, scene.workers)
    with _stopped(scene.broker):
        time.sleep(down_s)
    return replace(strike, over=time.monotonic())


def kill_store(scene: Scene, down_s: float = 2.0) -> Strike:
    """`kill -9` of the server that has the records alone, which is started again on its data."""
    assert scene.store is not None
    at = time.monotonic()
    scene.store.kill()
    time.sleep(down_s)
    scene.store.start()
    return Strike(at, time.monotonic())


@contextmanager
def _stopped(process: LocalProcess) -> Iterator[None]:
    process.freeze()
    try:
        yield
    finally:
        process.thaw()


def _strike(workers: Iterable[Worker]) -> Strike:
    at = time.monotonic()
    return Strike(at, at, frozenset(one.pid for worker in workers for one in worker.members()))


def _outage(scene: Scene, workers: Iterable[Worker]) -> Strike:
    """On Valkey a lease outlasts it; on RabbitMQ a connection is all there is, and what runs on
    one that is lost runs again."""
    strike = _strike(workers)
    return replace(strike, pids=frozenset()) if isinstance(scene.broker, Valkey) else strike


def _await_end(workers: Iterable[Worker]) -> None:
    """Nothing of the killed is left, which may have begun a job at the very last moment."""
    for worker in workers:
        eventually(lambda one=worker: not (one.running or one.members()), 10, "the end of them all")


def _restart(workers: Iterable[Worker]) -> Strike:
    at = time.monotonic()
    for worker in workers:
        worker.terminate()
        worker.wait(60)
        worker.start()
    return Strike(at, time.monotonic())

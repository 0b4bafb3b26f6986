"""The long stories of the suite: with small counts in the tests, with large ones in `large`.

Each returns what it counted, and fails where a promise was not kept.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from contextlib import suppress
from itertools import groupby, pairwise
from typing import Any

from support.process import eventually

from conformance.stages import Stage

Facts = dict[str, Any]


def events(stage: Stage, number: int, timeout_s: float = 60) -> Facts:
    """Three subscribers, one crashing and one failing: the others handle each event once."""
    case = stage.case()
    subscribers = ("first", "second", "failing", "crashing")
    queues = [f"conformance.{subscriber}" for subscriber in subscribers]
    for _ in range(2):
        stage.start_worker(queues=queues)
    for count in range(number):
        stage.app.app.publish(stage.app.Happened(case=case, number=count))
    crashes = sum(count % 1000 == 3 for count in range(number))
    expected = dict.fromkeys(subscribers, number) | {"crashing": number + crashes}
    for subscriber in subscribers:
        stage.wait_for(expected[subscriber], case, subscriber, timeout_s=timeout_s)
    eventually(lambda: stage.app.app.dead_letters.count() == number, timeout_s)
    once = Counter(range(number))
    for subscriber in subscribers:
        handled = Counter(one["number"] for one in stage.marks(case, subscriber))
        again = Counter(n for n in range(number) if n % 1000 == 3 and subscriber == "crashing")
        assert handled == once + again, (subscriber, handled - once, once - handled)
    return {"events": number, "handlings": 4 * number, "crashes": crashes, "lost": 0, "doubled": 0}


def order(stage: Stage, per_key: int, keys: int = 8, timeout_s: float = 60) -> Facts:
    """Each key's order over 4 shards and 3 consumers, one of which dies."""
    case, names = stage.case(), [f"key{number}" for number in range(keys)]
    workers = [stage.start_worker(queues=["ordered"]) for _ in range(3)]
    work = stage.app.Work
    for number in range(per_key):
        stage.app.ordered.send_many(work(case=case, key=key, number=number) for key in names)
    stage.wait_for(per_key * keys // 3, case, "ordered", timeout_s=timeout_s)
    workers[0].kill()
    in_order: dict[str, list[int]] = {}

    def all_done() -> bool:
        runs = stage.marks(case, "ordered")
        for key in names:
            mine = [one["number"] for one in runs if one["key"] == key]
            in_order[key] = [number for number, _ in groupby(mine)]
        return len(runs) >= per_key * keys and all(map(len, in_order.values()))

    def complete() -> bool:
        enough = stage.counted(case, "ordered") >= per_key * keys
        return enough and all_done() and sum(map(len, in_order.values())) >= per_key * keys

    eventually(complete, timeout_s, lambda: str({key: len(in_order[key]) for key in in_order}))
    for numbers in in_order.values():
        assert all(one < following for one, following in pairwise(numbers)), numbers
        assert numbers == list(range(per_key))
    runs = stage.counted(case, "ordered")
    return {"messages": per_key * keys, "runs": runs, "overtaken": 0, "lost": 0}


def delays(
    stage: Stage, number: int, longest_s: float, *, late_s: float = 10, seed: int = 7
) -> Facts:
    """Delays across a broker and a worker restart: none early, none lost, none much too late.

    Args:
        late_s: how late at most, counted from the end of the outage where the time came in it.
    """
    case, chance = stage.case(), random.Random(seed)
    delays_s = [round(chance.uniform(1, longest_s), 3) for _ in range(number)]
    worker = stage.start_worker(queues=["conformance"])
    sent: dict[int, tuple[float, float]] = {}
    for count, delay_s in enumerate(delays_s):
        begun = time.time()
        stage.app.work.send(stage.app.Work(case=case, number=count), delay_s=delay_s)
        sent[count] = begun + delay_s, time.time() + delay_s
    away = time.time()
    worker.kill()
    stage.restart_broker()
    stage.start_worker(queues=["conformance"])
    back = time.time()
    found = stage.eventually_marks(number, case, timeout_s=longest_s + 30)
    ran = {one["number"]: one["time"] for one in found}
    assert ran.keys() == sent.keys()
    early = [count for count, (due, _) in sent.items() if ran[count] < due - 0.001]
    assert not early, [(delays_s[count], ran[count] - sent[count][0]) for count in early]
    found_s = [
        ran[count] - (back if away < due < back else due)
        for count, (_, due) in sent.items()
        if due > away
    ]
    assert max(found_s, default=0) <= late_s, (max(found_s), back - away)
    doubled = len(found) - number
    return {
        "messages": number,
        "early": 0,
        "lost": 0,
        "doubled": doubled,
        "at most late by": f"{max(found_s, default=0):.2f} s",
        "away for": f"{back - away:.1f} s",
    }


def callbacks(stage: Stage, moments: dict[str, list[str]], timeout_s: float = 90) -> Facts:
    """SIGKILL at each moment between a job's last line and its settlement: it is told, by one id.

    Args:
        moments: of `killing`, by "success" and "failure".
    """
    worker = stage.start_worker("killing")
    app, sent, cases = stage.app, {}, {}
    for outcome, names in moments.items():
        for moment in names:
            case = stage.case()
            work = app.Work(case=case, key=moment, fails=9 * (outcome == "failure"))
            told = {"on_success": app.told, "on_failure": app.told_failure}
            sent[app.settled.request(work, **told).id] = outcome, moment
            cases[case] = outcome, moment
    died = 0

    def all_told() -> bool:
        nonlocal died
        if not worker.running:
            died += 1
            worker.close()
            with suppress(AssertionError):  # it may die while it starts
                worker.start()
        return all(stage.counted(job_id, "told") for job_id in sent)

    eventually(all_told, timeout_s, lambda: _untold(stage, sent))
    killed = {one for case, one in cases.items() if (stage.directory / f"killed-{case}").exists()}
    assert killed == set(cases.values()), f"nobody was killed at {set(cases.values()) - killed}"
    for job_id, (outcome, moment) in sent.items():
        heard = stage.marks(job_id)
        which = {"success": "told", "failure": "told-failure"}[outcome]
        assert {one["what"] for one in heard} == {which}, (outcome, moment, heard)
        assert len({one["id"] for one in heard}) == 1, (outcome, moment, heard)
    copies = sum(len(stage.marks(job_id)) - 1 for job_id in sent)
    return {"moments": len(sent), "workers killed": died, "lost": 0, "copies": copies}


def _untold(stage: Stage, sent: dict[str, Any]) -> str:
    return str({sent[job_id] for job_id in sent if not stage.marks(job_id)})


def sagas(stage: Stage, number: int, timeout_s: float = 60) -> Facts:
    """Workers are killed while sagas run: each is all done or all undone, each effect once."""
    workers = [stage.start_worker(concurrency=2) for _ in range(2)]
    work = stage.app.Work
    cases = {stage.case(): count % 2 for count in range(number)}
    running = {c: stage.app.order.start(work(case=c, fails=f)) for c, f in cases.items()}

    def ended() -> int:
        return sum(saga.state().final for saga in running.values())

    for turn, worker in enumerate(workers):
        eventually(lambda turn=turn: ended() >= number * (turn + 1) // 4, timeout_s)
        worker.kill()
        worker.close()
        worker.start()
    eventually(lambda: ended() == number, timeout_s)
    for case, fails in cases.items():
        effects = [(one["what"], one["id"]) for one in stage.marks(case)]
        once = [name for name, _ in dict.fromkeys(effects)]
        expected = ["reserve", "charge"] + ["refund", "release"] * fails
        assert once == expected, (running[case].record(), effects)
    return {"sagas": number, "kills": len(workers), "half done": 0}

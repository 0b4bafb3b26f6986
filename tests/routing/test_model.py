"""The transport's state machine against a model, on a real Valkey.

What is driven is `Lease` itself, without its thread, and the scripts. Time is the test's: `TIME` in
the scripts is replaced by a key that the test sets, so that hours pass, clocks jump and leases end
without waiting.
"""

from __future__ import annotations

import atexit
import json
from base64 import b64decode
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import count
from typing import Any, ClassVar
from unittest.mock import patch
from uuid import UUID

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support.servers import Valkey

from umbel.routing.valkey import DELIVERIES_HEADER, RAW_HEADER, lease, scripts
from umbel.routing.valkey.lease import BEATS, Lease
from umbel.routing.valkey.scripts import SETTLE, split_claim

LEASE_MS = 10_000
PAUSE_MS = LEASE_MS // BEATS
LISTS = ("a", "b", "a\x06\x163", "b\x06\x163")
"""The ready lists of two queues with two priorities, in the order in which they are served."""

CHANNELS = (1, 2)
RESTARTS_IN_20 = 1


def by_our_clock(script: str) -> str:
    """The script, told the time by the test."""
    assert "redis.call('TIME')" in script
    return script.replace("redis.call('TIME')", "redis.call('LRANGE', 'test.clock', 0, -1)")


BEAT, CLAIM = by_our_clock(scripts.BEAT), by_our_clock(scripts.CLAIM)


@dataclass(eq=False)
class Sent:
    """A message, and the runs of it that began and ended with their process."""

    number: int
    is_kombu: bool
    deliveries: int = 0

    def element(self) -> bytes:
        """As it is first put into a list."""
        if not self.is_kombu:
            return b"<raw>%d</raw>" % self.number
        properties = {
            "delivery_tag": str(self.number),
            "delivery_info": {"exchange": "", "routing_key": "a"},
        }
        return json.dumps({"body": "", "headers": {}, "properties": properties}).encode()


def seen(element: bytes) -> tuple[int, int]:
    """A message's number and how often the server's element says that it was begun in vain."""
    if element.startswith(b"<raw>"):
        return int(element[5:-6]), 0
    message = json.loads(element)
    if message["headers"].get(RAW_HEADER):  # it came back after a run
        number, _ = seen(b64decode(message["body"]))
        return number, message["headers"].get(DELIVERIES_HEADER, 0)
    return int(message["properties"]["delivery_tag"]), message["headers"].get(DELIVERIES_HEADER, 0)


@dataclass(eq=False)
class Claim:
    """What a consumer was told that it has."""

    lease: str
    name: str
    message: Sent
    list: str

    @property
    def number(self) -> int:
        return int(self.name.partition(".")[0])

    @property
    def channel(self) -> int:
        return int(self.name.partition(".")[2])

    @property
    def token(self) -> str:
        return f"{self.lease}:{self.name}"


class Stepped(Lease):
    """Our lease, which does what it is told and when it is told."""

    def __init__(self, machine: Deliveries) -> None:
        self.machine = machine
        super().__init__(lambda: machine.client, "", LEASE_MS / 1000)
        atexit.unregister(self.end)

    def _run(self) -> None:
        """Not by itself."""

    def _begin(self) -> None:
        with patch.object(lease, "uuid4", lambda: UUID(int=next(self.machine.leases))):
            super()._begin()

    def _take_over(self, consumer: str) -> None:
        with self.machine.taking_over(consumer):
            super()._take_over(consumer)

    def _restore(self, consumer: str, claims: Any) -> int:
        self.machine.between_reading_and_restoring(consumer)
        return super()._restore(consumer, claims)


@dataclass(eq=False)
class Consumer:
    """A process: what it believes, and whether it is there to say so.

    Attributes:
        heard_at: when it last said that it lives, by the true time.
        jumped: whether the server's clock has jumped since.
    """

    lease: Stepped
    heard_at: int
    up: bool = True
    crashed: bool = False
    jumped: bool = False
    claims: list[Claim] = field(default_factory=list)
    abandoned: dict[int, set[str]] = field(default_factory=dict)


EVERYTHING = """
local lists, found = {}, {claims = {}, begun = {}}
for i, key in ipairs(KEYS) do lists[i] = redis.call('LRANGE', key, 0, -1) end
for kind, read in pairs({claims = 'HGETALL', begun = 'SMEMBERS'}) do
    for i, key in ipairs(redis.call('KEYS', '_umbel.' .. kind .. '.*')) do
        found[kind][i] = {key, redis.call(read, key)}
    end
end
return {lists, found.claims, found.begun, redis.call('ZRANGE', '_umbel.consumers', 0, -1)}
"""


def _by_key(pairs: list[Any]) -> dict[str, list[bytes]]:
    return {key.decode().rpartition(".")[2]: values for key, values in pairs}


def _holders(claims: Iterable[Claim]) -> list[str]:
    return sorted({claim.lease for claim in claims})


def _some(claims: list[Claim], least: int = 1) -> st.SearchStrategy[list[Claim]]:
    if not claims:
        return st.just([])
    return st.lists(st.sampled_from(claims), min_size=least, max_size=len(claims), unique=True)


_lists = st.lists(st.sampled_from(LISTS), min_size=1, max_size=6)
_mostly = st.integers(0, 5).map(bool)
_PAUSES = st.one_of(st.just(PAUSE_MS), st.integers(1, PAUSE_MS))


class TakingOver:
    """The model of a take-over: what was begun when the claims were read counts as a run."""

    def __init__(self, machine: Deliveries, dead: str) -> None:
        self.machine, self.dead = machine, dead

    def __enter__(self) -> None:
        self.claims = list(self.machine.held.get(self.dead, {}).values())
        self.begun = set(self.machine.begun.get(self.dead, ()))

    def __exit__(self, kind: Any, *_: Any) -> None:
        if kind is None:
            self.machine.put_back(self.claims, counted=self.begun)
            if not self.machine.held.get(self.dead):
                self.machine.registered.discard(self.dead)


class Deliveries(RuleBasedStateMachine):
    """Any number of consumers, and whatever may befall them."""

    server: ClassVar[Valkey]

    def __init__(self) -> None:
        super().__init__()
        self.client = self.server.client()
        self.client.flushdb()
        self.leases = count(1)
        self.true_ms = 1_700_000_000_000
        self.offset_ms = 0
        self.set_clock()
        self.consumers: list[Consumer] = []
        self.sent = 0
        self.last_claim = 0
        self.quiet_since_jump = True
        self.data: Any = None
        # The model of the server.
        self.ready: dict[str, list[Sent]] = {key: [] for key in LISTS}
        self.held: dict[str, dict[str, Claim]] = {}
        self.begun: dict[str, set[str]] = {}
        self.settled: set[int] = set()
        self.registered: set[str] = set()
        self.join()

    # The world.

    def set_clock(self) -> None:
        now = self.true_ms + self.offset_ms
        with self.client.pipeline() as together:
            together.delete("test.clock")
            together.rpush("test.clock", now // 1000, now % 1000 * 1000)
            together.execute()

    @precondition(lambda self: sum(not consumer.crashed for consumer in self.consumers) < 3)
    @rule()
    def join(self) -> None:
        """A process begins to consume."""
        consumer = Consumer(Stepped(self), self.true_ms)
        self.consumers.append(consumer)
        self.registered.add(consumer.lease.id)
        self.held[consumer.lease.id] = {}

    @rule(keys=_lists, is_kombu=_mostly)
    def send(self, keys: list[str], is_kombu: bool) -> None:
        """Anybody sends; what is no Kombu message too."""
        for key in keys:
            self.sent += 1
            message = Sent(self.sent, is_kombu)
            self.client.lpush(key, message.element())
            self.ready[key].append(message)

    @rule(
        data=st.data(),
        most=st.integers(0, 4),
        of_a=st.sampled_from(["", 0, 1, 2]),
        channel=st.sampled_from(CHANNELS),
    )
    def claim(self, data: Any, most: int, of_a: int | str, channel: int) -> None:
        """A consumer claims; also with the last words of one that is gone by now."""
        consumer = data.draw(st.sampled_from(self.consumers))
        self.claim_as(consumer, 4 - most, channel, of_a)

    def claim_as(self, consumer: Consumer, most: int, channel: int, of_a: int | str = "") -> None:
        """Of queue a any number or so many, of queue b one at a time and in its order."""
        me = consumer.lease.id
        keys = ["_umbel.consumers", f"_umbel.claims.{me}", "_umbel.fence", "_umbel.watchers"]
        keys += [f"_umbel.{what}.{queue}" for what in ("waiting", "lock") for queue in "ab"]
        arguments = [me, channel, most, "_umbel.wake.", 2, "a", of_a, 0, "b", 1, 1, 1, 2, 1, 2]
        in_flight = any(
            claim.list[0] == "b" for claims in self.held.values() for claim in claims.values()
        )
        left = {"a": 99 if of_a == "" else int(of_a), "b": int(not in_flight)}
        answer = self.client.eval(CLAIM, len(keys) + len(LISTS), *keys, *LISTS, *arguments)
        assert (answer is None) == (me not in self.registered or self.is_dead(me))
        if answer is None:
            return
        first, watched, locked, counts, elements = answer
        assert {*locked} <= {*watched} & {b"b"}
        for key, taken in zip(LISTS, counts, strict=True):
            assert taken == min(most, left[key[0]], len(self.ready[key]))
            most -= taken
            left[key[0]] -= taken
            for number in range(int(first), int(first) + taken):
                assert number > self.last_claim
                self.last_claim = number
                message = self.ready[key].pop(0)
                assert seen(elements.pop(0)) == (message.number, message.deliveries)
                claim = Claim(me, f"{number}.{channel}", message, key)
                self.held[me][claim.name] = claim
                consumer.claims.append(claim)
            first = int(first) + taken
        assert not elements

    @property
    def holders(self) -> list[Consumer]:
        """Who believes to have something."""
        return [consumer for consumer in self.consumers if consumer.claims]

    @precondition(lambda self: self.holders)
    @rule(data=st.data(), then=st.sampled_from(["begin", "end", "both"]))
    def settle(self, data: Any, then: str) -> None:
        """Jobs begin and end, as the consumer sees it: what it lost is refused."""
        consumer = data.draw(st.sampled_from(self.holders))
        begun = data.draw(_some(consumer.claims)) if then != "end" else []
        done = data.draw(_some(consumer.claims)) if then != "begin" else []
        for holder in _holders((*begun, *done)):
            self.settle_under(
                holder,
                [claim for claim in begun if claim.lease == holder and claim not in done],
                [claim for claim in done if claim.lease == holder],
            )
        consumer.claims = [claim for claim in consumer.claims if claim not in done]

    def settle_under(self, holder: str, begun: list[Claim], done: list[Claim]) -> None:
        keys = [f"_umbel.claims.{holder}", f"_umbel.begun.{holder}"]
        names = [claim.name for claim in (*begun, *done)]
        missing = self.client.eval(SETTLE, len(keys), *keys, len(begun), *names)
        assert missing == sum(claim.name not in self.held[holder] for claim in done)
        self.settled_by_model(begun, done)

    def settled_by_model(self, begun: Iterable[Claim], done: Iterable[Claim]) -> None:
        for claim in begun:
            if claim.name in self.held[claim.lease]:
                self.begun.setdefault(claim.lease, set()).add(claim.name)
        for claim in done:
            if self.held[claim.lease].pop(claim.name, None):
                self.begun.get(claim.lease, set()).discard(claim.name)
                assert claim.message.number not in self.settled
                self.settled.add(claim.message.number)

    @precondition(lambda self: self.holders)
    @rule(data=st.data())
    def leave_it_to_the_lease(self, data: Any) -> None:
        """The same and more through the lease, as a closed channel does: some go back."""
        consumer = data.draw(st.sampled_from(self.holders))
        begun, done, back = (data.draw(_some(consumer.claims, 0)) for _ in range(3))
        consumer.lease.settle([c.token for c in done], [c.token for c in begun])
        consumer.lease.give_back([c.token for c in back])
        consumer.claims = [c for c in consumer.claims if c not in done and c not in back]
        self.flush(consumer, begun, done, back)

    @rule(data=st.data(), channel=st.sampled_from(CHANNELS))
    def abandon(self, data: Any, channel: int) -> None:
        """A channel closes: what it held goes back, but for what runs."""
        consumer = data.draw(st.sampled_from(self.consumers))
        if channel in consumer.abandoned:
            return
        own = [c for c in consumer.claims if (c.channel, c.lease) == (channel, consumer.lease.id)]
        keep = data.draw(_some(own, 0))
        consumer.lease.abandon(channel, [claim.token for claim in keep])
        consumer.abandoned[channel] = {claim.name for claim in keep}
        consumer.claims = [c for c in consumer.claims if c not in own or c in keep]
        self.flush(consumer)

    def flush(
        self,
        consumer: Consumer,
        begun: Iterable[Claim] = (),
        done: Iterable[Claim] = (),
        back: Iterable[Claim] = (),
    ) -> None:
        consumer.lease._flush()
        done, back = list(done), [claim for claim in back if claim not in done]
        self.settled_by_model([claim for claim in begun if claim not in done], done)
        for holder in _holders(back):
            self.put_back([claim for claim in back if claim.lease == holder])
        mine = self.held.get(consumer.lease.id, {})
        self.put_back(
            claim
            for claim in list(mine.values())
            if claim.channel in consumer.abandoned
            and claim.name not in consumer.abandoned[claim.channel]
        )

    def put_back(self, claims: Iterable[Claim], counted: Iterable[str] = ()) -> None:
        """The model of RESTORE: to the head of the list, the oldest claim foremost."""
        for claim in sorted(claims, key=lambda claim: claim.number, reverse=True):
            if not self.held[claim.lease].pop(claim.name, None):
                continue
            self.begun.get(claim.lease, set()).discard(claim.name)
            claim.message.deliveries += claim.name in counted
            self.ready[claim.list].insert(0, claim.message)

    # Life and death.

    @rule(data=st.data(), rounds=st.sampled_from([1, 1, 2, 4, 6]), most_ms=_PAUSES)
    def pass_time(self, data: Any, rounds: int, most_ms: int) -> None:
        """Time passes; each process that is up says in time that it lives."""
        self.let_pass(data, rounds, most_ms)

    def let_pass(self, data: Any, rounds: int, most_ms: int) -> None:
        for _ in range(rounds):
            self.true_ms += most_ms
            self.set_clock()
            self.data = data
            up = data.draw(st.permutations([c for c in self.consumers if c.up]))
            for consumer in up:
                if self.true_ms - consumer.heard_at >= PAUSE_MS or data.draw(st.booleans()):
                    self.beat(consumer)
            self.quiet_since_jump = not any(consumer.jumped for consumer in up)

    def beat(self, consumer: Consumer) -> None:
        """It says that it lives; if it was up all the time, it does."""
        before, silent_ms = consumer.lease.id, self.true_ms - consumer.heard_at
        in_time = silent_ms <= 2 * PAUSE_MS
        blip = silent_ms < LEASE_MS and not consumer.jumped
        consumer.lease._renew()
        if before != consumer.lease.id:
            assert not in_time, "it was heard in time, and lost its lease"
            assert not blip, "a blip shorter than the lease"
            consumer.abandoned.clear()
            self.registered.add(consumer.lease.id)
            self.held[consumer.lease.id] = {}
        consumer.heard_at, consumer.jumped = self.true_ms, False
        self.flush(consumer)

    def taking_over(self, dead: str) -> TakingOver:
        """Called by a lease."""
        return TakingOver(self, dead)

    def between_reading_and_restoring(self, dead: str) -> None:
        """Another does the same at once, or the dead speaks: it was only stopped."""
        if not (self.is_dead(dead) and self.data):
            return
        data, self.data = self.data, None  # once: not again inside of what happens here
        reapers = [consumer for consumer in self.consumers if consumer.up]
        what = data.draw(st.sampled_from(["nothing", "words", *(["reaper"] if reapers else [])]))
        if what == "reaper":
            other = data.draw(st.sampled_from(reapers))
            other.lease._take_over(dead)
        elif what == "words":
            [owner] = [c for c in self.consumers if c.lease.id == dead] or [None]
            if owner:
                claims = [claim for claim in owner.claims if claim.lease == dead]
                begun, done = (data.draw(_some(claims, 0)) for _ in range(2))
                self.settle_under(dead, [c for c in begun if c not in done], done)
                owner.claims = [claim for claim in owner.claims if claim not in done]
                self.claim_as(owner, 2, 1)
        self.data = data

    @rule(data=st.data(), crash=st.booleans())
    def stop(self, data: Any, crash: bool) -> None:
        """A process is stopped, or killed."""
        consumer = data.draw(st.sampled_from(self.consumers))
        consumer.up, consumer.crashed = False, consumer.crashed or crash

    @rule(data=st.data(), keys=_lists, crash=st.booleans())
    def lose_one(self, data: Any, keys: list[str], crash: bool) -> None:
        """One stops at work, for so long that the others have to see to it."""
        self.send(keys, True)
        lost = data.draw(st.sampled_from(self.consumers))
        self.claim_as(lost, len(keys), 1)
        begun = data.draw(_some([c for c in lost.claims if c.lease == lost.lease.id], 0))
        if begun:
            self.settle_under(lost.lease.id, begun, [])
        lost.up, lost.crashed = False, lost.crashed or crash
        self.let_pass(data, BEATS + 2, PAUSE_MS)

    @precondition(lambda self: any(not c.up and not c.crashed for c in self.consumers))
    @rule(data=st.data())
    def go_on(self, data: Any) -> None:
        """One that was stopped goes on."""
        stopped = [c for c in self.consumers if not c.up and not c.crashed]
        consumer = data.draw(st.sampled_from(stopped))
        self.data = data
        consumer.up = True
        self.beat(consumer)

    @precondition(lambda self: self.quiet_since_jump)
    @rule(by_ms=st.sampled_from([-100_000, -9_000, -1, 1_500, 3_500, 9_000, 30_000]))
    def jump(self, by_ms: int) -> None:
        """The server's clock is set, or the server was away; once before all were heard again."""
        self.offset_ms += by_ms
        self.set_clock()
        self.quiet_since_jump = False
        for consumer in self.consumers:
            consumer.jumped = True

    @rule(dice=st.integers(1, 20))
    def restart(self, dice: int) -> None:
        """`kill -9` of the server, and a start on its append-only file."""
        if dice <= RESTARTS_IN_20:
            self.server.kill()
            self.server.start()

    # What holds at every moment.

    def is_dead(self, consumer: str) -> bool:
        return self.client.zscore("_umbel.consumers", consumer) == 0

    @invariant()
    def the_server_is_as_the_model(self) -> None:
        """Each list in its order with its counts, each claim, each begun run; nothing twice."""
        lists, claims, begun, consumers = self.client.eval(EVERYTHING, len(LISTS), *LISTS)
        found: list[int] = []
        for (key, messages), elements in zip(self.ready.items(), lists, strict=True):
            there = [seen(element) for element in reversed(elements)]
            assert there == [(message.number, message.deliveries) for message in messages], key
            found += [number for number, _ in there]
        for holder, values in _by_key(claims).items():
            there = {
                name.decode(): (key, seen(element))
                for name, value in zip(values[::2], values[1::2], strict=True)
                for key, element in [split_claim(value)]
            }
            assert there == {
                name: (claim.list, (claim.message.number, claim.message.deliveries))
                for name, claim in self.held[holder].items()
            }
            found += [number for _, (number, _) in there.values()]
        assert sorted((*found, *self.settled)) == [*range(1, self.sent + 1)]
        runs = {
            holder: {name.decode() for name in names} for holder, names in _by_key(begun).items()
        }
        assert runs == {holder: names for holder, names in self.begun.items() if names}
        assert {name.decode() for name in consumers} == self.registered

    def teardown(self) -> None:
        """Who is gone is found out, what it had is done by the others, and nothing stays behind."""
        self.data = None
        if not any(consumer.up for consumer in self.consumers):
            self.join()
        living = [consumer for consumer in self.consumers if consumer.up]
        for _ in range(2 * BEATS):
            self.true_ms += PAUSE_MS
            self.set_clock()
            for consumer in living:
                self.beat(consumer)
        assert self.registered == {consumer.lease.id for consumer in living}
        self.the_server_is_as_the_model()
        for consumer in living:
            consumer.lease.end()
            self.registered.discard(consumer.lease.id)
            self.put_back(list(self.held[consumer.lease.id].values()))
        self.the_server_is_as_the_model()
        self.join()
        last = self.consumers[-1]
        while any(self.ready.values()):
            self.claim_as(last, 5, 1)
            self.settle_under(last.lease.id, [], last.claims)
            last.claims = []
        assert len(self.settled) == self.sent
        last.lease.end()
        left = {key.decode() for key in self.client.scan_iter()}
        ours = {f"_umbel.{name}" for name in ("fence", "beat_at", "watchers", "lock.b")}
        assert left <= ours | {"test.clock"}


def test_nothing_is_lost_and_nothing_settled_twice(valkey, monkeypatch):
    """Whatever comes in whatever order: claims, acknowledgements, returns, crashes, pauses, two
    reapers at once, clocks that jump, a server that is killed."""
    monkeypatch.setattr(lease, "BEAT", BEAT)

    class OnServer(Deliveries):
        server = valkey

    run_state_machine_as_test(
        OnServer,
        settings=settings(
            max_examples=50,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )

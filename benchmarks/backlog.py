"""What a message costs while many others wait: to send one, and to get one done.

A million messages would take the slower producers many minutes to send. So a few are sent, and what
they added to the broker is copied until it is enough: in that system's own lists, hashes, sorted
sets or streams, each copy with ids of its own.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import amqp
from kombu import Connection
from redis import Redis

from benchmarks import effects
from benchmarks.effects import Effects
from benchmarks.figures import middle_rate
from benchmarks.producer import WARM
from benchmarks.servers import RabbitMQ, Valkey, wait
from benchmarks.systems import Pool
from benchmarks.trial import QUIET_S, Sample, empty_bench

SAMPLE = 1_000  # messages sent on top of the backlog, and as many again taken from its head
ID = re.compile(rb"[0-9a-f]{8}(?:-?[0-9a-f]{4}){4}([0-9a-f]{8})")  # a UUID's end is made new
CHUNK = 500  # copies in one script

# ARGV: first number, last number, then for each command the number of its arguments, and for each
# argument the number of its pieces and the pieces: joined by the copy's number they are new ids.
COPY = """
local commands, at = {}, 3
while at <= #ARGV do
  local arguments = {}
  for i = 1, tonumber(ARGV[at]) do
    at = at + 1
    local pieces = {}
    for j = 1, tonumber(ARGV[at]) do pieces[j] = ARGV[at + j] end
    at = at + #pieces
    arguments[i] = pieces
  end
  commands[#commands + 1] = arguments
  at = at + 1
end
for number = tonumber(ARGV[1]), tonumber(ARGV[2]) do
  local id = string.format('%08x', number)
  for _, arguments in ipairs(commands) do
    local call = {}
    for i, pieces in ipairs(arguments) do call[i] = table.concat(pieces, id) end
    redis.call(unpack(call))
  end
end
"""

Command = tuple[bytes, ...]


def run(system: str, pool: Pool, server: Valkey | RabbitMQ, store: Valkey, waiting: int) -> Sample:
    """Microseconds to send one, and to get one done, while `waiting` others wait.

    Returns:
        `send_us` and `drain_us`.
    """
    sample = int(SAMPLE * pool.share)
    with empty_bench(system, server, store) as bench:
        bench.produce("send")
        if isinstance(server, Valkey):
            before = _contents(server.client)
            bench.produce("send")
            _copy(server.client, _added(before, _contents(server.client)), waiting // WARM)
        else:
            _copy_on_rabbitmq(server, bench.url, waiting)
        store.settle()
        rate = bench.produce("send", each=sample)["send"]
        with bench.workers(pool):
            effects.wait_for(bench.effects, 2 * sample, QUIET_S)
            done = Effects.read(bench.effects).times[: 2 * sample]
    return {"send_us": 1e6 / rate, "drain_us": 1e6 / middle_rate(done)}


def _contents(client: Redis) -> set[Command]:
    """Commands that would write all that is there."""
    return {command for key in client.scan_iter(count=1_000) for command in _writing(client, key)}


def _writing(client: Redis, key: bytes) -> list[Command]:
    match client.type(key):
        case b"list":
            added = [(b"LPUSH", key, element) for element in client.lrange(key, 0, -1)]
        case b"hash" if ID.search(key):
            added = [(b"HSET", key, *_flat(client.hgetall(key).items()))]
        case b"hash":
            added = [(b"HSET", key, *pair) for pair in client.hgetall(key).items()]
        case b"set":
            added = [(b"SADD", key, member) for member in client.smembers(key)]
        case b"zset":
            members = client.zrange(key, 0, -1, withscores=True)
            added = [(b"ZADD", key, b"%d" % score, member) for member, score in members]
        case b"stream":
            entries = [fields for _, fields in client.xrange(key)]
            added = [(b"XADD", key, b"*", *_flat(fields.items())) for fields in entries]
        case _:
            expires = (b"EX", b"86400") if client.pttl(key) > 0 else ()
            added = [(b"SET", key, client.get(key), *expires)]
    return added


def _flat(pairs: Iterable[tuple[bytes, bytes]]) -> Iterator[bytes]:
    return itertools.chain.from_iterable(pairs)


def _added(before: set[Command], after: set[Command]) -> list[Command]:
    """What belongs to the messages sent in between: it has ids, and is there for each of them."""
    new = [command for command in after - before if any(map(ID.search, command))]
    places = Counter(ID.sub(b"", command[1]) for command in new)
    return [command for command in new if places[ID.sub(b"", command[1])] >= WARM]


def _copy(client: Redis, commands: list[Command], copies: int) -> None:
    pattern: list[Any] = []
    for command in commands:
        pattern.append(len(command))
        for argument in command:
            pieces = _without_ids(argument)
            pattern += [len(pieces), *pieces]
    script = client.register_script(COPY)
    for first in range(0, copies, CHUNK):
        script(args=[first, min(first + CHUNK, copies) - 1, *pattern])


def _without_ids(argument: bytes) -> list[bytes]:
    """The pieces between the ends of the ids in it."""
    pieces, at = [], 0
    for found in ID.finditer(argument):
        pieces.append(argument[at : found.start(1)])
        at = found.end(1)
    return [*pieces, argument[at:]]


def _copy_on_rabbitmq(server: RabbitMQ, url: str, copies: int) -> None:
    """Publish a waiting message again and again, without confirms; return when all are there."""
    with Connection(url) as connection:
        channel = connection.default_channel
        found = ((name, channel.basic_get(name)) for name in server.queues())
        queue, message = next((name, message) for name, message in found if message)
        copy = amqp.Message(message.body, **message.properties)
        for _ in range(copies):
            channel.basic_publish(copy, routing_key=queue)
        channel.basic_reject(message.delivery_tag, requeue=True)
        wait(lambda: channel.queue_declare(queue, passive=True)[1] >= copies, 120, "the backlog")

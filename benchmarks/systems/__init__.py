"""The systems that are compared, one file each, all with the same four names.

    SYSTEM              what it is, how its workers are started, how safe it is
    send(message)       send one
    send_many(messages) send a thousand in the best way that its documentation shows
    connect()           if it has to connect first

All three may be coroutines. A file that needs packages of its own is run by the interpreter in
`build/bench/<name>`, where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass

# In the order of the tables.
NAMES = (
    "umbel",
    "umbel_stripped",
    "celery",
    "celery_late",
    "dramatiq",
    "taskiq",
    "taskiq_list",
    "huey",
    "rq",
    "arq",
)
VALKEY, RABBITMQ = "valkey", "rabbitmq"
AT_LEAST_ONCE, AT_MOST_ONCE = "at least once", "at most once"


@dataclass(frozen=True)
class Pool:
    """Workers with two processes or two threads, as somebody would start them.

    Attributes:
        name: as in the tables.
        command: what is typed; `{copy}` is the number of the copy, `{url}` the broker.
        copies: how often it is started.
        idle: whether round trips are measured on it too.
        share: of the usual number of messages, where a thousand jobs take many seconds.
        brokers: where it is measured.
    """

    name: str
    command: str
    copies: int = 1
    idle: bool = False
    share: float = 1.0
    brokers: tuple[str, ...] = (VALKEY, RABBITMQ)


@dataclass(frozen=True)
class System:
    """One competitor.

    Attributes:
        title: its name in the tables.
        packages: whose versions are printed.
        brokers: where it runs.
        safety: what becomes of a message whose worker is killed.
        because: why, in the words of its documentation where it says so.
        source: where that is written.
        pools: the first is the one whose backlog is measured.
    """

    title: str
    packages: tuple[str, ...]
    brokers: tuple[str, ...]
    safety: str
    because: str
    source: str
    pools: tuple[Pool, ...]

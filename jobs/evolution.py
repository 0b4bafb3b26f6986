"""What a change of contracts breaks, and for whom: today's beside those of the lock file.

A message lives longer than the code that sent it, and workers of two releases run side by side. So:

- what is locked must fit today's reader: its class, or a newer one to which `@upcast` leads;
- of the version that is sent today, what today's producers write must also fit the locked readers.
  Of a newer version it need not: old workers give it back to the queue;
- results are read by callers of both releases, so that they must fit both ways.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from umbel.jobs.compatibility import Misfit, Schema, misfits
from umbel.jobs.contracts import Message, names_of
from umbel.jobs.lockfile import Locked, LockFile
from umbel.jobs.schemas import Contract, ContractsApp, Kind, contract_classes, contracts_of
from umbel.jobs.versions import class_for

_QUEUED = "messages that wait, or come from older producers, no longer fit"
_UNREAD = "messages that wait, or come from older producers, are not read"
_SENT = "workers of the locked release cannot read what is sent from now on"
_RETURNED = "callers of the other release cannot read the result"


class Breaks(StrEnum):
    """How."""

    CHANGED = "changed"
    REMOVED = "removed"
    """Nothing here reads it any more: right once nothing waits."""


@dataclass(frozen=True)
class Break:
    """One thing that breaks.

    Attributes:
        how: what was done to it.
        contract: its name and version.
        path: of the field; empty for the whole message.
        why: what no longer fits.
        whom: who notices.
        remedy: what to do instead.
    """

    how: Breaks
    contract: str
    path: str
    why: str
    whom: str
    remedy: str

    def __str__(self) -> str:
        """One line."""
        where = f"{self.path}: " if self.path else ""
        return f"{self.contract}: {where}{self.why}; {self.whom}: {self.remedy}"


@dataclass(frozen=True)
class Comparison:
    """What came of a comparison.

    Attributes:
        breaks: what must not be.
        unlocked: what is compatible and not in the lock file yet.
    """

    breaks: tuple[Break, ...]
    unlocked: tuple[str, ...]


def compare(lock: LockFile, app: ContractsApp) -> Comparison:
    """Today's contracts of an app with the locked ones."""
    contracts = contracts_of(app)
    today = LockFile.of(contracts)
    readers = _readers(app, contracts)
    breaks = [
        broken
        for name, locked in sorted(lock.contracts.items())
        for broken in _of_contract(name, locked, readers)
    ]
    for name, schema in sorted(lock.results.items()):
        if name in today.results:
            breaks += _of_result(name, schema, today.results[name])
    return Comparison(tuple(breaks), tuple(_unlocked(lock, renewed(lock, app))))


def renewed(lock: LockFile, app: ContractsApp) -> LockFile:
    """The lock file of today: with what was locked before and can still be read."""
    contracts = contracts_of(app)
    today, readers = LockFile.of(contracts), _readers(app, contracts)
    for name, locked in lock.contracts.items():
        if reader := readers.get(name):
            current = today.contracts[_lock_name(name, reader, today)]
            for version, schema in locked.versions.items():
                if version not in current.versions and not list(
                    _of_version(name, version, schema, reader)
                ):
                    current.versions[version] = schema
    return today


def _lock_name(name: str, reader: type[Message], today: LockFile) -> str:
    return name if name in today.contracts else reader.contract_name


def _readers(app: ContractsApp, contracts: Sequence[Contract]) -> dict[str, type[Message]]:
    """Today's class by each name under which messages may come, callbacks by their jobs'."""
    classes = contract_classes(app).values()
    readers = {name: contract for contract in classes for name in names_of(contract)}
    callbacks = {one.name: one.type for one in contracts if one.kind is Kind.CALLBACK}
    return callbacks | readers


def _of_contract(
    name: str, locked: Locked, readers: Mapping[str, type[Message]]
) -> Iterator[Break]:
    reader = readers.get(name)
    if reader is None:
        versions = ", ".join(map(str, sorted(locked.versions)))
        yield _gone(f"{name} {versions}", "nothing reads it any more", "the job and its class")
        return
    for alias in locked.aliases:
        if readers.get(alias) is not reader:
            yield _gone(name, f"the alias {alias!r} is gone", f"aliases=({alias!r},)")
    for version, schema in sorted(locked.versions.items()):
        yield from _of_version(name, version, schema, reader)


def _gone(contract: str, why: str, what: str) -> Break:
    remedy = (
        f"keep {what} until `contracts check --in-flight` finds none; then `contracts lock "
        "--allow-removed`"
    )
    return Break(Breaks.REMOVED, contract, "", why, _UNREAD, remedy)


def _of_version(name: str, version: int, schema: Schema, newest: type[Message]) -> Iterator[Break]:
    contract = f"{name} {version}"
    if version > newest.contract_version:
        why = f"the newest version here is {newest.contract_version}"
        yield _gone(contract, why, f"the class of version {version}")
        return
    reader = class_for(newest, name, version)
    today = reader.model_json_schema()
    remedy = f"make it version {newest.contract_version + 1}, with an @upcast from this one"
    if reader.contract_version != version:
        remedy = f"keep the class of version {version}, with an @upcast to the next"
    old = misfits(schema, today)
    new = misfits(today, schema) if version == newest.contract_version else []
    yield from _both(contract, old, new, (_QUEUED, _SENT), remedy)


def _of_result(name: str, schema: Schema, today: Schema) -> Iterator[Break]:
    remedy = "add fields with a default, or return it from a new job"
    old, new = misfits(schema, today), misfits(today, schema)
    yield from _both(f"{name} (result)", old, new, (_RETURNED, _RETURNED), remedy)


def _both(
    contract: str, old: list[Misfit], new: list[Misfit], whom: tuple[str, str], remedy: str
) -> Iterator[Break]:
    """One for each field: what breaks both ways is one mistake."""
    for misfit in old:
        default = "give it a default, or " if misfit.absent else ""
        yield Break(Breaks.CHANGED, contract, misfit.path, misfit.why, whom[0], default + remedy)
    known = {misfit.path for misfit in old}
    for misfit in new:
        if misfit.path not in known:
            keep = "keep sending it, or " if misfit.absent else ""
            yield Break(Breaks.CHANGED, contract, misfit.path, misfit.why, whom[1], keep + remedy)


def _unlocked(lock: LockFile, today: LockFile) -> Iterator[str]:
    """What `contracts lock` would write anew or drop, in words."""
    for name, contract in sorted(today.contracts.items()):
        known = lock.contracts.get(name)
        for version, schema in sorted(contract.versions.items()):
            before = known and known.versions.get(version)
            if before != schema:
                yield f"{name} {version} ({'changed' if before else 'new'})"
        if known and (set(known.aliases), known.kind) != (set(contract.aliases), contract.kind):
            yield f"{name} (names)"
    for name, schema in sorted(today.results.items()):
        if lock.results.get(name) != schema:
            yield f"{name} (result, {'changed' if name in lock.results else 'new'})"
    gone = [*(lock.contracts.keys() - today.contracts.keys())]
    gone += [f"{name} (result)" for name in lock.results.keys() - today.results.keys()]
    yield from (f"{name} (gone)" for name in sorted(gone))

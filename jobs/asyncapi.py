"""The contracts of an app as an AsyncAPI 3.0 document: what goes where, and in which form.

Payloads and headers are those of `docs/wire-format.md`, and the schemas are in AsyncAPI's own
dialect, a superset of JSON Schema draft-07: the official parser reads no 2020-12.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol
from urllib.parse import urlsplit

from pydantic import TypeAdapter

from umbel.config.settings import Settings
from umbel.jobs.compatibility import Schema
from umbel.jobs.schemas import Consumer, Contract, ContractsApp, Kind, contracts_of
from umbel.jobs.wire import (
    CAUSATION_ID,
    CONTRACT,
    CORRELATION_ID,
    EVENT_ID,
    PRODUCED_AT,
    TRACKED,
    VERSION,
)
from umbel.routing.queues import WorkQueue
from umbel.routing.topics import topics

_SCHEMAS = "#/components/schemas/"
_MESSAGES = "#/components/messages/"
_JSON = "application/json"
_EMBEDDED = "celery.embedded"
_BINDING = {"bindingVersion": "0.3.0"}

Document = dict[str, Any]


class DocumentedApp(ContractsApp, Protocol):
    """What is asked of an app besides."""

    main: str
    work_queues: dict[str, WorkQueue]

    @property
    def prefix(self) -> str: ...
    @property
    def settings(self) -> Settings: ...


def asyncapi(app: DocumentedApp, version: str = "1.0.0") -> Document:
    """The document, as JSON types.

    Args:
        app: whose.
        version: of the app, for readers.
    """
    contracts = contracts_of(app)
    schemas, components = _schemas(contracts)
    return {
        "asyncapi": "3.0.0",
        "id": f"urn:umbel:{app.prefix}",
        "info": {"title": app.main, "version": version},
        "defaultContentType": _JSON,
        **_servers(app.settings.broker_url),
        "channels": _channels(app, contracts),
        "operations": _operations(contracts),
        "components": {
            "schemas": components | schemas | {_EMBEDDED: _embedded()},
            "messages": {one.key: _message(one) for one in contracts},
            "correlationIds": {
                "umbel": {"location": f"$message.header#/{CORRELATION_ID}"},
            },
        },
    }


def _schemas(contracts: Sequence[Contract]) -> tuple[dict[str, Schema], dict[str, Schema]]:
    """Of each contract by its key, and those to which they refer; all at once, for their names."""
    known: list[tuple[str, Any, TypeAdapter[Any]]] = [
        (one.key, "serialization" if one.kind is Kind.RESULT else "validation", _adapter(one))
        for one in contracts
    ]
    schemas, top = TypeAdapter.json_schemas(known, ref_template=_SCHEMAS + "{model}")
    named = {key: _draft_07(schemas[key, mode]) for key, mode, _ in known}
    return named, {name: _draft_07(one) for name, one in top.get("$defs", {}).items()}


def _adapter(contract: Contract) -> TypeAdapter[Any]:
    return TypeAdapter(contract.type if contract.schema() else Any)


def _draft_07(schema: Any) -> Any:
    """Tuples in the old words, and no OpenAPI discriminator: alternatives say it by constants."""
    if isinstance(schema, list):
        return [_draft_07(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    old: Schema = {}
    for name, value in schema.items():
        if name in {"properties", "patternProperties"}:
            old[name] = {key: _draft_07(inner) for key, inner in value.items()}
        elif name in {"const", "enum", "default", "examples"}:
            old[name] = value
        elif name == "prefixItems":
            old["items"] = _draft_07(value)
        elif name == "items" and "prefixItems" in schema:
            old["additionalItems"] = _draft_07(value)
        elif name != "discriminator":
            old[name] = _draft_07(value)
    return old


def _servers(url: str) -> Document:
    """Where the broker is, without who may go there; an embedded one is nowhere for others."""
    first = urlsplit(url.split(";", maxsplit=1)[0])
    if not first.hostname:
        return {}
    port = f":{first.port}" if first.port else ""
    server = {"host": f"{first.hostname}{port}", "protocol": first.scheme}
    return {"servers": {"broker": server | ({"pathname": first.path} if first.path else {})}}


def _channels(app: DocumentedApp, contracts: Sequence[Contract]) -> Document:
    channels: Document = {}
    for name, queue in sorted(app.work_queues.items()):
        if taken := [one for one in contracts if name in {by.queue for by in _takers(one)}]:
            channels[_queue(name)] = _work_queue(queue, taken)
    for one in contracts:
        if one.kind is Kind.EVENT and one.newest:
            channels[_event(one)] = _topic(app, one)
    if results := [one for one in contracts if one.kind is Kind.RESULT]:
        what = "Kept in the state store under the job's id, for `handle.result()`."
        channels["results"] = {"address": None, "description": what, **_messages(results)}
    return channels


def _work_queue(queue: WorkQueue, contracts: Iterable[Contract]) -> Document:
    """A queue, or a family of them with a parameter in its address."""
    address, parameters = queue.name, {}
    if len(queue.parts) > 1:
        address, name = f"{queue.name}{{part}}", queue.name
        parts = [part.removeprefix(name) for part in queue.parts]
        parameters = {"parameters": {"part": {"enum": parts}}}
    on_the_broker = {"name": queue.name, "durable": True, "exclusive": False, "autoDelete": False}
    return {
        "address": address,
        **parameters,
        **_messages(contracts),
        "bindings": {"amqp": {"is": "queue", "queue": on_the_broker, **_BINDING}},
    }


def _topic(app: DocumentedApp, event: Contract) -> Document:
    exchange = {
        "name": topics(app.prefix).name,
        "type": "topic",
        "durable": True,
        "autoDelete": False,
    }
    return {
        "address": event.name,
        **_messages([event]),
        "bindings": {"amqp": {"is": "routingKey", "exchange": exchange, **_BINDING}},
    }


def _messages(contracts: Iterable[Contract]) -> Document:
    return {"messages": {one.key: {"$ref": _MESSAGES + one.key} for one in contracts}}


def _operations(contracts: Sequence[Contract]) -> Document:
    """What workers receive, all versions; what producers send, today's."""
    operations: Document = {}
    results = {one.name: one for one in contracts if one.kind is Kind.RESULT}
    for one in contracts:
        for by in _takers(one):
            reply = {"reply": _refers("results", [results[by.job]])} if by.job in results else {}
            receive = operations.setdefault(
                f"receive.{by.job}",
                {"action": "receive", **_refers(_queue(by.queue), []), **reply},
            )
            receive["messages"] += _refers(_queue(by.queue), [one])["messages"]
            if one.kind is Kind.MESSAGE and one.newest:
                sent = _refers(_queue(by.queue), [one])
                operations[f"send.{by.job}"] = {"action": "send", **sent, **reply}
        if one.kind is Kind.EVENT and one.newest:
            operations[f"publish.{one.name}"] = {"action": "send", **_refers(_event(one), [one])}
    return dict(sorted(operations.items()))


def _refers(channel: str, contracts: Iterable[Contract]) -> Document:
    where = f"#/channels/{channel}"
    return {
        "channel": {"$ref": where},
        "messages": [{"$ref": f"{where}/messages/{one.key}"} for one in contracts],
    }


def _takers(contract: Contract) -> tuple[Consumer, ...]:
    return () if contract.kind is Kind.RESULT else contract.consumers


def _queue(name: str) -> str:
    return f"queue.{name}"


def _event(contract: Contract) -> str:
    return f"event.{contract.name}"


def _message(contract: Contract) -> Document:
    schema = {"$ref": _SCHEMAS + contract.key}
    about = (vars(contract.type).get("__doc__") or "").strip() if _is_class(contract) else ""
    message: Document = {"name": contract.key, "contentType": _JSON}
    if about:
        message |= {"summary": about.splitlines()[0]}
    if contract.kind is Kind.RESULT:
        return message | {"payload": schema}
    return message | {
        "correlationId": {"$ref": "#/components/correlationIds/umbel"},
        "headers": _headers(contract),
        "payload": _body(schema),
    }


def _is_class(contract: Contract) -> bool:
    return isinstance(contract.type, type)


def _body(message: Schema) -> Schema:
    """Of a Celery message, protocol 2: positional arguments, named ones, what is embedded."""
    named = {"type": "object", "maxProperties": 0}
    return _tuple(_tuple(message), named, {"$ref": _SCHEMAS + _EMBEDDED})


def _tuple(*items: Schema) -> Schema:
    many = len(items)
    bounds = {"minItems": many, "maxItems": many, "additionalItems": False}
    return {"type": "array", "items": list(items), **bounds}


def _embedded() -> Schema:
    """What is to follow the job, by Celery; null or absent for nothing."""
    follows = {"type": ["array", "object", "null"]}
    names = ("callbacks", "errbacks", "chain", "chord")
    return {"type": ["object", "null"], "properties": dict.fromkeys(names, follows)}


def _headers(contract: Contract) -> Schema:
    """Those that a producer sets; docs/wire-format.md has all."""
    text, number, yes_or_no = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
    time = {"type": "string", "format": "date-time"}
    names = [by.job for by in contract.consumers] or [contract.name]
    is_event = contract.kind is Kind.EVENT
    tasks = [contract.name] if is_event else names
    properties: Mapping[str, Schema] = {
        "task": {"type": "string", "enum": tasks},
        "id": text,
        CONTRACT: {"type": "string", "enum": [_wire_name(contract), *contract.aliases]},
        VERSION: {**number, "const": contract.version},
        CORRELATION_ID: text,
        CAUSATION_ID: text,
        PRODUCED_AT: time,
        TRACKED: yes_or_no,
        "ignore_result": yes_or_no,
        "eta": time,
        "expires": time,
    }
    if is_event:
        properties = {
            **properties,
            EVENT_ID: text,
            "ce-specversion": {"type": "string", "const": "1.0"},
            "ce-type": text,
            "ce-source": text,
            "ce-time": time,
        }
    required = ["task", "id", EVENT_ID] if is_event else ["task", "id"]
    return {"type": "object", "required": required, "properties": properties}


def _wire_name(contract: Contract) -> str:
    name: str = contract.type.contract_name
    return name

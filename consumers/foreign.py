"""Documents of other programs: JSON, XML and CloudEvents that are no Celery messages become jobs.

`adopt` makes the task message of them that a producer of ours would have sent. What does not fit
its contract is refused before anything of it is changed, so that its bytes are kept as they came.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import NAMESPACE_OID, uuid4, uuid5
from xml.etree.ElementTree import Element

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from umbel.config.errors import ContractError
from umbel.consumers.deadletters import Reason
from umbel.consumers.delivery import received
from umbel.consumers.inspection import Misfit
from umbel.jobs.callbacks import is_callback
from umbel.jobs.cloudevents import CloudEvent
from umbel.jobs.contracts import Message, names_of
from umbel.jobs.job import Job
from umbel.jobs.subscription import Subscription
from umbel.jobs.wire import Envelope, shown
from umbel.jobs.xml import NotXml, contract_in, named_by, parse, payload_of

_TELLS_NOTHING = frozenset(
    {"", "application/data", "application/octet-stream", "text/plain", "binary"}
)
"""Content types of what says nothing of itself: a look at the first character decides."""

_PASSED_ON = ("traceparent", "tracestate", "baggage")


class AdoptingApp(Protocol):
    """What this needs of the app."""

    jobs: dict[str, Job[Any, Any, Any]]
    subscriptions: dict[str, Subscription]


@dataclass(frozen=True)
class Document:
    """What came.

    Attributes:
        content: JSON types, or the root of an XML document.
        event: the CloudEvent that it is the data of, if it is.
        says: the contract's name and version, as far as they are said.
    """

    content: Any
    event: CloudEvent | None
    says: tuple[str | None, int | None]


@dataclass(frozen=True)
class _Checked:
    """A document that fits.

    Attributes:
        payload: JSON types, of the version that the envelope says.
        envelope: our headers, as far as they are known.
        message: what it is to this worker; None if only a newer one can tell.
    """

    payload: Any
    envelope: Envelope
    message: Message | None = None


def adopt(message: Any, app: AdoptingApp) -> None:
    """Make a task message of a document, in place; a task message stays as it is.

    Args:
        message: Kombu's, with the queue as the routing key of its `delivery_info`.
        app: its jobs and subscribers, of which one is to take it.

    Raises:
        Misfit: no document, or one that no job takes; nothing was changed.
    """
    headers = message.headers if isinstance(message.headers, dict) else {}
    if "task" in headers:
        return
    document = read(_bytes(message), str(message.content_type or ""), headers)
    queue = str((message.delivery_info or {}).get("routing_key"))
    job = receiver(document, queue, app)
    try:
        contract = job.contract_for(document.says[0])
        checked = _checked(document, contract, Envelope.read(headers))
    except NotXml as error:
        raise Misfit(Reason.CONTRACT, f"{contract.contract_name}: {error}") from error
    except ContractError as error:
        raise Misfit(Reason.CONTRACT, str(error)) from error
    _rewrite(message, job, document.event, checked)


def read(body: bytes, content_type: str, headers: Mapping[str, Any]) -> Document:
    """The document that some bytes are.

    Raises:
        Misfit: none.
    """
    try:
        event, content = _event_and_content(body, content_type, headers)
        if isinstance(content, Element) and (found := named_by(content))[1]:
            return Document(content, event, found)
    except (ValueError, RecursionError) as error:
        why = _problems(error) if isinstance(error, ValidationError) else str(error)
        raise Misfit(
            Reason.MALFORMED,
            f"neither a document ({why}) nor a Celery message: there is no task header",
        ) from error
    if event:
        return Document(content, event, _said_by(event))
    envelope = Envelope.read(headers)
    name = envelope.contract or (found[0] if isinstance(content, Element) else None)
    return Document(content, None, (name, envelope.version))


def receiver(document: Document, queue: str, app: AdoptingApp) -> Job[Any, Any, Any]:
    """The job that takes a document: the subscriber's, the one that it names, or the queue's only.

    Raises:
        Misfit: there is none, or it is not clear which.
    """
    if subscription := app.subscriptions.get(queue):
        return subscription
    jobs = [
        job
        for job in dict.fromkeys(app.jobs.values())
        if not (isinstance(job, Subscription) or is_callback(job.contract))
    ]
    name = document.says[0]
    named = [job for job in jobs if name in {*job.names, *names_of(job.contract)}]
    here = [job for job in jobs if queue in job.work_queue.parts]
    for found in (named, [job for job in named if job in here], here):
        if len(found) == 1:
            return found[0]
    names = ", ".join(sorted(job.name for job in here)) or "none"
    raise Misfit(
        Reason.UNKNOWN_JOB,
        f"a document for queue {queue!r}, whose jobs are: {names}; it names "
        f"{repr(name) if name else 'none'}. The type of a CloudEvent, the namespace of an XML "
        "document or the header umbel-contract says which it is for",
    )


def _checked(document: Document, contract: type[Message], envelope: Envelope) -> _Checked:
    name, version = document.says
    name = name if name in names_of(contract) else contract.contract_name
    version = version if version and version > 0 else contract.contract_version
    envelope = envelope._replace(contract=name, version=version)
    content = document.content
    if version > contract.contract_version:
        # JSON is given back, for a newer worker: it needs no class to be read.
        if isinstance(content, Element):
            why = f"an XML document of version {version}, known is {contract.contract_version}"
            raise Misfit(Reason.TOO_NEW, f"{contract.contract_name}: {why}")
        return _Checked(content, envelope)
    payload = payload_of(content, contract) if isinstance(content, Element) else content
    return _Checked(payload, envelope, received(contract, [payload], {}, envelope))


def _rewrite(
    message: Any, job: Job[Any, Any, Any], event: CloudEvent | None, checked: _Checked
) -> None:
    before = message.headers if isinstance(message.headers, dict) else {}
    job_id, tracked = _identity(message, job, event)
    causes = {"root_id": event.unique_id, "parent_id": event.unique_id} if event else {}
    envelope, known = checked.envelope, checked.message
    correlation_id = envelope.correlation_id or (message.properties or {}).get("correlation_id")
    envelope = envelope._replace(
        correlation_id=str(correlation_id or (event.unique_id if event else job_id)),
        causation_id=event.unique_id if event else envelope.causation_id,
        produced_at=event.time if event and event.time else envelope.produced_at,
        tracked=tracked,
    )
    message.headers = {
        **{name: before[name] for name in _PASSED_ON if isinstance(before.get(name), str)},
        **(event.headers() if event else {}),
        "task": job.name,
        "id": job_id,
        "root_id": job_id,
        "retries": 0,
        "argsrepr": shown(known) if known else "",
        "kwargsrepr": "",
        "ignore_result": not tracked,
        **causes,
        **envelope.headers(),
    }
    message.body = to_json([[checked.payload], {}, None], inf_nan_mode="null")
    message.content_type, message.content_encoding = "application/json", "utf-8"
    message._decoded_cache = None


def _identity(message: Any, job: Job[Any, Any, Any], event: CloudEvent | None) -> tuple[str, bool]:
    """The job's id, and whether its producer knows it: then there is a record, and a copy of what
    has ended is dropped.

    What names itself by nothing is named by its element's tag on Valkey, which stays with it.
    """
    properties = message.properties or {}
    if isinstance(job, Subscription) and event:
        return job.handling_id(event.unique_id), False
    if event:
        return event.unique_id, True
    if isinstance(message_id := properties.get("message_id"), str) and message_id:
        return message_id, not isinstance(job, Subscription)
    tag = properties.get("delivery_tag")
    return str(uuid5(NAMESPACE_OID, tag) if isinstance(tag, str) else uuid4()), False


def _event_and_content(
    body: bytes, content_type: str, headers: Mapping[str, Any]
) -> tuple[CloudEvent | None, Any]:
    content = _content(body, content_type)
    if event := CloudEvent.beside(headers):
        return event, content
    if event := CloudEvent.inside(content):
        content, kind = event.data, event.datacontenttype or ""
        if isinstance(content, bytes) or (isinstance(content, str) and _is_xml(kind)):
            content = _content(content, kind)
    return event, content


def _said_by(event: CloudEvent) -> tuple[str, int | None]:
    schema = contract_in(event.dataschema or "")
    return event.type, event.umbelversion or (schema[1] if schema else None)


def _content(body: Any, content_type: str) -> Any:
    """JSON types, or the root of an XML document.

    Raises:
        ValueError: it is neither.
    """
    kind = content_type.partition(";")[0].strip().lower()
    start = body.lstrip(b"\xef\xbb\xbf \t\r\n" if isinstance(body, bytes) else None)[:1]
    if _is_xml(kind) or (kind in _TELLS_NOTHING and start in (b"<", "<")):
        return parse(body)
    if kind == "application/cloudevents-batch+json":
        raise ValueError("several CloudEvents in one message: send one by one")
    if kind in _TELLS_NOTHING or kind.endswith("/json") or kind.endswith("+json"):
        return from_json(body.removeprefix(b"\xef\xbb\xbf"))
    raise ValueError(f"content type {content_type!r} is neither JSON nor XML")


def _is_xml(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind.endswith("/xml") or kind.endswith("+xml")


def _bytes(message: Any) -> bytes:
    body = message.body
    if isinstance(body, bytes | memoryview):
        return bytes(body)
    return str(body if body is not None else "").encode("utf-8", "surrogatepass")


def _problems(error: ValidationError) -> str:
    return "CloudEvent: " + "; ".join(
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False)
    )

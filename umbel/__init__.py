"""Umbel: asynchronous jobs on Celery and Kombu whose message format is the contract.

    from umbel import Message, Umbel

Names are loaded when they are first used: importing this reads, starts and connects nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umbel.app import Umbel
    from umbel.config.errors import (
        BlobError,
        BrokerUnavailable,
        ContractError,
        EmbeddedError,
        JobCancelled,
        JobFailed,
        MessageRefused,
        ResultTimeout,
        SagaFailed,
        SettingsError,
        ShardsChanged,
        StoreRequired,
        UmbelError,
        UnknownJob,
        UnknownQueue,
    )
    from umbel.config.settings import Settings
    from umbel.consumers.pull import Pulled
    from umbel.jobs.blobs import Blob
    from umbel.jobs.callbacks import Completed, Failed
    from umbel.jobs.context import JobContext
    from umbel.jobs.contracts import Event, Message
    from umbel.jobs.handle import JobHandle, Receipt
    from umbel.jobs.job import Job
    from umbel.jobs.records import JobState, Progress
    from umbel.jobs.retry import Retry
    from umbel.jobs.saga import Saga
    from umbel.jobs.saga_handle import SagaHandle
    from umbel.jobs.saga_state import SagaState
    from umbel.jobs.saga_steps import SagaRun, Step
    from umbel.jobs.versions import upcast
    from umbel.jobs.xml import from_xml, to_xml
    from umbel.jobs.xsd import xsd_of
    from umbel.routing.queues import WorkQueue

_HOMES = {
    "umbel.app": ("Umbel",),
    "umbel.config.errors": (
        "BlobError",
        "BrokerUnavailable",
        "ContractError",
        "EmbeddedError",
        "JobCancelled",
        "JobFailed",
        "MessageRefused",
        "ResultTimeout",
        "SagaFailed",
        "SettingsError",
        "ShardsChanged",
        "StoreRequired",
        "UmbelError",
        "UnknownJob",
        "UnknownQueue",
    ),
    "umbel.config.settings": ("Settings",),
    "umbel.consumers.pull": ("Pulled",),
    "umbel.jobs.blobs": ("Blob",),
    "umbel.jobs.callbacks": ("Completed", "Failed"),
    "umbel.jobs.context": ("JobContext",),
    "umbel.jobs.contracts": ("Event", "Message"),
    "umbel.jobs.handle": ("JobHandle", "Receipt"),
    "umbel.jobs.job": ("Job",),
    "umbel.jobs.records": ("JobState", "Progress"),
    "umbel.jobs.retry": ("Retry",),
    "umbel.jobs.saga": ("Saga",),
    "umbel.jobs.saga_handle": ("SagaHandle",),
    "umbel.jobs.saga_state": ("SagaState",),
    "umbel.jobs.saga_steps": ("SagaRun", "Step"),
    "umbel.jobs.versions": ("upcast",),
    "umbel.jobs.xml": ("from_xml", "to_xml"),
    "umbel.jobs.xsd": ("xsd_of",),
    "umbel.routing.queues": ("WorkQueue",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Blob",
    "BlobError",
    "BrokerUnavailable",
    "Completed",
    "ContractError",
    "EmbeddedError",
    "Event",
    "Failed",
    "Job",
    "JobCancelled",
    "JobContext",
    "JobFailed",
    "JobHandle",
    "JobState",
    "Message",
    "MessageRefused",
    "Progress",
    "Pulled",
    "Receipt",
    "ResultTimeout",
    "Retry",
    "Saga",
    "SagaFailed",
    "SagaHandle",
    "SagaRun",
    "SagaState",
    "Settings",
    "SettingsError",
    "ShardsChanged",
    "Step",
    "StoreRequired",
    "Umbel",
    "UmbelError",
    "UnknownJob",
    "UnknownQueue",
    "WorkQueue",
    "from_xml",
    "to_xml",
    "upcast",
    "xsd_of",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'umbel' has no attribute {name!r}")
    return getattr(import_module(_HOME_OF[name]), name)


def __dir__() -> list[str]:
    return __all__

"""Every error that Umbel raises on purpose.

    UmbelError
    ├── SettingsError       a setting has a value that is not allowed
    ├── ContractError       a message does not fit its contract, or two contracts collide
    ├── BrokerUnavailable   the broker did not take a message in time
    ├── MessageRefused      the broker answered that it does not take a message
    ├── EmbeddedError       the embedded server could not be started
    ├── StoreRequired       what was asked for needs a state store, and none is named
    ├── UnknownQueue        a queue that this app does not have
    ├── UnknownJob          no job with this id is known (never sent, or expired)
    ├── JobFailed           the job ended without a result
    │   └── JobCancelled    because it was cancelled; raise it inside a job that noticed
    ├── SagaFailed          a saga is undone, or stuck in undoing
    ├── ResultTimeout       no result within the time given; the job goes on
    ├── InvalidWebhook      a webhook that no holder of a secret has sent just now
    ├── WebhookFailed       a URL did not take a callback (in umbel.consumers.webhooks)
    ├── BlobError           a file by reference cannot be read or written
    │   └── BlobTooLarge    more bytes came than may (in umbel.jobs.blobs)
    ├── MediaError          a picture or video that is refused (in umbel.jobs.media.errors)
    └── ToolFailed          FFmpeg is missing or broken (in umbel.jobs.media.ffmpeg)

Each says what was expected, what came and what to do, and carries the facts as fields.
"""

from __future__ import annotations

from collections.abc import Sequence


class UmbelError(Exception):
    """The root of the tree: catch it to catch all of them."""


class SettingsError(UmbelError):
    """A setting has a value that is not allowed; says which, where it came from, what is."""


class ContractError(UmbelError):
    """A message does not fit its contract.

    Attributes:
        contract: the contract's wire name, ``"image.resize"``.
        problems: one line for each misfit, each starting with the path of its field.
    """

    def __init__(self, contract: str, problems: Sequence[str]) -> None:
        self.contract = contract
        self.problems = tuple(problems)
        super().__init__(contract, self.problems)

    def __str__(self) -> str:
        return f"{self.contract}: " + "; ".join(self.problems)


class BrokerUnavailable(UmbelError):
    """The broker did not take a message within ``publish_timeout_s``.

    The message may or may not have been queued: repeat the send with the same ``job_id``.
    """


class MessageRefused(UmbelError):
    """The broker answered that it does not take a message, which was not queued.

    In the server's words: there is no such queue, the message is too large, the queue or the server
    is full, the right is missing.
    """


class EmbeddedError(UmbelError):
    """The embedded server could not be started; carries the end of its log."""


class StoreRequired(UmbelError):
    """What was asked for needs a state store: set ``UMBEL_STORE_URL``."""


class ShardsChanged(UmbelError):
    """A queue has another number of shards than this program was written for."""


class UnknownQueue(UmbelError):
    """A queue that this app does not have; lists those that it has."""


class UnknownJob(UmbelError):
    """No job with this id is known: it was never tracked, or its record has expired."""


class JobFailed(UmbelError):
    """The job ended without a result.

    Attributes:
        job_id: the job's id.
        reason: what happened, ``"ValueError: no such picture"``.
        traceback: the worker's traceback, where there is one.
    """

    def __init__(self, reason: str, job_id: str | None = None, traceback: str | None = None):
        self.reason = reason
        self.job_id = job_id
        self.traceback = traceback
        super().__init__(reason, job_id, traceback)

    def __str__(self) -> str:
        return f"{self.reason} (job {self.job_id})" if self.job_id else self.reason


class JobCancelled(JobFailed):
    """The job was cancelled. A job that notices ``context.cancelled`` raises this."""

    def __init__(
        self, reason: str = "cancelled", job_id: str | None = None, traceback: str | None = None
    ):
        super().__init__(reason, job_id, traceback)


class SagaFailed(UmbelError):
    """A saga was not done: it is undone, or stuck in undoing.

    Attributes:
        reason: what happened, ``"shop.charge: ValueError: no such card"``.
        saga: its name and id, ``"order/17"``.
        state: ``undone`` or ``stuck``.
        step: the step that failed; None if somebody cancelled it.
    """

    def __init__(self, reason: str, saga: str, state: str, step: str | None = None):
        self.reason = reason
        self.saga = saga
        self.state = state
        self.step = step
        super().__init__(reason, saga, state, step)

    def __str__(self) -> str:
        return f"saga {self.saga} is {self.state}: {self.reason}"


class ResultTimeout(UmbelError):
    """No result within the time given; the job itself goes on."""


class InvalidWebhook(UmbelError):
    """A webhook that no holder of a secret has sent just now: answer 400, and do nothing."""


class BlobError(UmbelError):
    """A file by reference cannot be read or written."""

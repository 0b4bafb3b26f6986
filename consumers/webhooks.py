"""The job that takes callbacks to their URLs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from importlib.util import find_spec
from time import monotonic
from typing import Any, Protocol

from umbel.config.errors import SettingsError, UmbelError
from umbel.config.settings import Settings
from umbel.consumers.deadletters import describe
from umbel.consumers.webhook_log import Attempt, WebhookLog
from umbel.jobs.context import JobContext
from umbel.jobs.outages import AWAY
from umbel.jobs.retry import Retry
from umbel.jobs.webhooks import (
    WebhookCall,
    checked_url,
    headers_of_webhook,
    shown_url,
    signed_with,
)

logger = logging.getLogger("umbel.worker")

LONGEST_WISH_S = 6 * 3600
"""Longest pause that a receiver can ask for by ``Retry-After``, in seconds."""
GRACE_S = 10.0
"""What a run may take besides its attempt: names are resolved without a limit of ours."""

_GONE = 410


class WebhookFailed(UmbelError):
    """A URL did not take a callback; it is tried again.

    Attributes:
        reason: what happened, ``"answered 503"``.
        status: the answer's; None without an answer.
        wish_s: the pause that the receiver asks for, in seconds, if it does.
    """

    def __init__(self, reason: str, status: int | None = None, wish_s: float | None = None):
        self.reason = reason
        self.status = status
        self.wish_s = wish_s
        super().__init__(reason, status, wish_s)

    def __str__(self) -> str:
        return self.reason


class WebhookGivenUp(WebhookFailed):
    """No further attempt would change it: the receiver says so, or the URL is not permitted."""


class WebhookApp(Protocol):
    """What the job needs of its app."""

    @property
    def settings(self) -> Settings: ...
    @property
    def webhook_log(self) -> WebhookLog: ...


@dataclass(frozen=True)
class Wished(Retry):
    """A policy whose pauses are longer where a receiver asks for it."""

    def delay_s(self, error: BaseException, attempt: int) -> float | None:
        """As `Retry.delay_s`."""
        delay_s = super().delay_s(error, attempt)
        wish_s = getattr(error, "wish_s", None) or 0.0
        return delay_s if delay_s is None else max(delay_s, min(wish_s, LONGEST_WISH_S))


def terms(settings: Settings) -> dict[str, Any]:
    """How the job is run."""
    give_up_on = (WebhookGivenUp,)
    return {
        "retry": Wished(delays_s=settings.webhook_delays_s, give_up_on=give_up_on),
        "timeout_s": settings.webhook_timeout_s + GRACE_S,
        # It harms no process: when its own dies it is for something else.
        "max_deliveries": 100,
    }


def poster(app: WebhookApp) -> Callable[[WebhookCall, JobContext], int]:
    """The function of the job; it returns the answer's status."""

    def webhook(message: WebhookCall, context: JobContext) -> int:
        at, began = datetime.now(UTC), monotonic()
        failure: WebhookFailed | None = None
        try:
            status: int | None = deliver(message, context.job_id, at, app.settings)
        except WebhookFailed as error:
            failure, status = error, error.status
        _log(
            app,
            Attempt(
                webhook_id=context.job_id,
                url=shown_url(message.url),
                type=message.type,
                job=str(message.data.get("job")),
                job_id=str(message.data.get("job_id")),
                attempt=context.attempt,
                at=at,
                duration_s=round(monotonic() - began, 3),
                status=status,
                error=failure.reason if failure else "",
            ),
        )
        if failure:
            raise failure
        return status or 0

    return webhook


def deliver(call: WebhookCall, webhook_id: str, at: datetime, settings: Settings) -> int:
    """One attempt. Returns the status, which says that the receiver has it.

    Raises:
        WebhookFailed: it has not, as far as is known.
    """
    from umbel.consumers.guard import UNDELIVERED, AddressRefused, post  # noqa: PLC0415  an extra

    body = call.document()
    headers = {"content-type": "application/json", "user-agent": "Umbel"}
    headers |= headers_of_webhook(webhook_id, at, body, signed_with(settings))
    try:
        checked_url(call.url, settings)  # any program may have written the message
    except ValueError as error:
        raise WebhookGivenUp(f"not sent: {error}") from error
    try:
        status, answered = post(call.url, headers, body, settings)
    except AddressRefused as error:
        raise WebhookGivenUp(f"not sent: {error}") from error
    except UNDELIVERED as error:
        raise WebhookFailed(f"no answer: {describe(error)}") from error
    if 200 <= status < 300:
        return status
    if status == _GONE:
        raise WebhookGivenUp("answered 410: gone for good", status)
    raise WebhookFailed(f"answered {status}", status, wish_of(answered, at))


def wish_of(headers: Mapping[str, str], now: datetime) -> float | None:
    """The pause of ``Retry-After`` (RFC 9110, 10.2.3), seconds or a time, in seconds."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (ValueError, TypeError):  # the latter: a time without a zone
        return None


def refuse_without_libraries() -> None:
    """Of a worker that is to post: its messages are left to one that can.

    Raises:
        SettingsError: the extra is not installed.
    """
    if missing := [name for name in ("httpcore", "standardwebhooks") if not find_spec(name)]:
        raise SettingsError(
            f"webhook_secrets are set, and {' and '.join(missing)} not installed, which callbacks "
            "to URLs need: pip install 'umbel[webhooks]', or start this worker with -Q for its "
            "other queues"
        )


def _log(app: WebhookApp, attempt: Attempt) -> None:
    try:
        app.webhook_log.add(attempt)
    except AWAY as error:  # no reason to post again what has been taken
        logger.warning(
            "attempt %d at webhook %s is not in its log: %r",
            *(attempt.attempt, attempt.webhook_id, error),
            extra={"action": "webhook_not_logged", "webhook_id": attempt.webhook_id},
        )

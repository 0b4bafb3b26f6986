"""Callbacks to URLs, as Standard Webhooks: the message of the job that posts them, and signatures.

https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar, overload
from urllib.parse import urlsplit

from pydantic_core import from_json, to_json

from umbel.config.errors import ContractError, InvalidWebhook, SettingsError
from umbel.config.settings import Settings
from umbel.jobs.addresses import literal, may_reach
from umbel.jobs.contracts import Message

M = TypeVar("M", bound=Message)
N = TypeVar("N", bound=Message)

WEBHOOK = "umbel.webhook"
"""The job's name."""

LONGEST_URL = 2000
"""In characters."""


class WebhookCall(Message, name="umbel.webhook-call", version=1):
    """One callback to a URL; workers write it.

    Attributes:
        url: where it goes.
        type: the name of the contract of `data`: ``umbel.completed`` or ``umbel.failed``.
        timestamp: when the job had ended, UTC, ISO 8601.
        data: what is told.
    """

    url: str
    type: str
    timestamp: datetime
    data: dict[str, Any]

    def document(self) -> bytes:
        """The body of the request: the same in each attempt, since it is signed."""
        payload = self.payload()
        return to_json({name: payload[name] for name in ("type", "timestamp", "data")})

    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        """For Flower and logs: a query may hold a key, and a result anything."""
        yield "url", shown_url(self.url)
        yield "type", self.type
        yield "job", self.data.get("job")
        yield "job_id", self.data.get("job_id")


def checked_url(url: str, settings: Settings) -> str:
    """The URL, if a callback can go there as far as is known without a look at the network.

    Raises:
        ValueError: with what is wrong with it.
    """
    shown = shown_url(url)
    if not (url.isascii() and url.isprintable()) or " " in url or len(url) > LONGEST_URL:
        raise ValueError(
            f"{shown!r}: expected at most {LONGEST_URL} characters of ASCII without spaces "
            "(names as xn--…, the rest percent-encoded)"
        )
    parts = urlsplit(url)
    schemes = ("https", "http") if settings.webhook_allow_http else ("https",)
    if parts.scheme not in schemes or not parts.hostname:
        raise ValueError(
            f"{shown!r}: expected https://host/… (http:// only with webhook_allow_http)"
        )
    if "@" in parts.netloc:
        raise ValueError(f"{shown!r}: no user and password; receivers check the signature")
    _ = parts.port  # raises a ValueError of its own
    address = literal(parts.hostname)
    if address and not may_reach(parts.hostname, [address], settings.webhook_allow):
        raise ValueError(f"{shown!r}: the address is not public; webhook_allow= can allow it")
    return url


def shown_url(url: str) -> str:
    """For logs: without what may be secret, user, password and query."""
    before, mark, _ = url.partition("?")
    scheme, slashes, rest = before.partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}{slashes}{host.rpartition('@')[2]}{slash}{path}{mark and '?…'}"


def signed_with(settings: Settings) -> list[str]:
    """The secrets, the one in use first.

    Raises:
        SettingsError: there is none.
    """
    if not settings.webhook_secrets:
        raise SettingsError(
            "a callback to a URL is signed, and there is no secret: set UMBEL_WEBHOOK_SECRETS (or "
            "webhook_secrets=) to whsec_ and 24 to 64 random bytes in base64, here and for the "
            "workers: echo whsec_$(openssl rand -base64 32)"
        )
    return [secret.get_secret_value() for secret in settings.webhook_secrets]


def headers_of_webhook(
    webhook_id: str, at: datetime, body: bytes, secrets: Sequence[str]
) -> dict[str, str]:
    """The three headers, with a signature by each secret.

    Args:
        webhook_id: the same in each attempt.
        at: now, UTC; receivers refuse what is older than five minutes.
        body: of the request.
        secrets: that receivers may have, ``whsec_…``.
    """
    from standardwebhooks import Webhook  # noqa: PLC0415  an extra

    signatures = [Webhook(secret).sign(webhook_id, at, body.decode()) for secret in secrets]
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": " ".join(signatures),
    }


@overload
def verify(
    body: bytes | str,
    headers: Mapping[str, str],
    secrets: str | Sequence[str],
    contract: type[M],
    /,
) -> M: ...
@overload
def verify(
    body: bytes | str,
    headers: Mapping[str, str],
    secrets: str | Sequence[str],
    contract: type[M],
    other: type[N],
    /,
) -> M | N: ...
def verify(
    body: bytes | str, headers: Mapping[str, str], secrets: str | Sequence[str], /, *contracts: Any
) -> Any:
    """What a webhook tells, once it is certain that a holder of a secret has sent it just now.

        told = verify(body, request.headers, secrets, Completed[Parcel], Failed)

    It may come more than once: ``headers["webhook-id"]`` is the same then.

    Args:
        body: of the request, as it came: parsed and written anew it has another signature.
        headers: of the request.
        secrets: one, or several while they change: ``whsec_…``.
        contracts: what may come, `Completed` of the result's type, `Failed`, or both.

    Raises:
        InvalidWebhook: not signed by one of the secrets, or not within five minutes of now.
        ContractError: it is genuine, and none of the contracts.
    """
    document = _genuine(body, headers, [secrets] if isinstance(secrets, str) else secrets)
    kind = document.get("type")
    for contract in contracts:
        if contract.contract_name == kind:
            return contract.received(document.get("data"))
    wanted = " or ".join(contract.contract_name for contract in contracts)
    raise ContractError(str(kind), [f"type: expected {wanted}"])


def _genuine(
    body: bytes | str, headers: Mapping[str, str], secrets: Sequence[str]
) -> dict[str, Any]:
    try:
        from standardwebhooks import Webhook, WebhookVerificationError  # noqa: PLC0415  an extra
    except ImportError as error:
        raise SettingsError("verifying webhooks: pip install 'umbel[webhooks]'") from error
    why: Exception | str = "no secrets were given"
    for secret in secrets:
        try:
            Webhook(secret).verify(body, dict(headers), json_parse=False)
        except (WebhookVerificationError, ValueError) as error:  # the latter: no base64, no UTF-8
            why = error
            continue
        try:
            document = from_json(body)
        except ValueError as error:
            why = error
            break
        return document if isinstance(document, dict) else {}
    raise InvalidWebhook(f"not a webhook of a known sender: {why}")

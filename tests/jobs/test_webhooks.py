"""Callbacks to URLs: what is refused at send, and what a receiver may rely on."""

from __future__ import annotations

import json
from base64 import b64encode
from datetime import UTC, datetime, timedelta

import pytest
from pydantic import BaseModel

from umbel import Completed, ContractError, Failed, Message, SettingsError, Umbel, webhooks
from umbel.jobs.webhooks import WebhookCall, headers_of_webhook
from umbel.jobs.wire import shown
from umbel.webhooks import InvalidWebhook, verify

OLD, NEW, OTHER = (f"whsec_{b64encode(bytes([n]) * 32).decode()}" for n in range(3))


class Parcel(BaseModel):
    grams: int


def told(**changed) -> tuple[bytes, dict[str, str]]:
    """A webhook as a worker posts it."""
    data = {"job": "shop.pack", "job_id": "j1", "result": {"grams": 7}, "correlation_id": "c1"}
    call = WebhookCall(
        url="https://hooks.example/", type="umbel.completed", timestamp=datetime.now(UTC), data=data
    )
    body = call.document()
    given = {"webhook_id": "w1", "at": datetime.now(UTC), "body": body, "secrets": [NEW, OLD]}
    return body, headers_of_webhook(**{**given, **changed})


def test_a_receiver_gets_back_what_the_job_returned():
    """Typed; with the old secret and with the new one, while they change."""
    body, headers = told()
    assert json.loads(body).keys() == {"type", "timestamp", "data"}
    assert len(headers["webhook-signature"].split()) == 2
    for secrets in (NEW, OLD, [OTHER, OLD]):
        message = verify(body, headers, secrets, Completed[Parcel], Failed)
        assert isinstance(message, Completed)
        assert (message.result, message.job_id) == (Parcel(grams=7), "j1")
    upper = {name.title(): value for name, value in headers.items()}
    assert webhooks.verify(body.decode(), upper, NEW, Completed[Parcel]).correlation_id == "c1"


def test_what_is_not_genuine_is_refused():
    """Another secret, another body, another id, another time, no signature, garbage."""
    body, headers = told()
    late = told(at=datetime.now(UTC) - timedelta(minutes=6))
    early = told(at=datetime.now(UTC) + timedelta(minutes=6))
    for wrong in (
        (body, headers, OTHER),
        (body, headers, []),
        (body + b" ", headers, NEW),
        (b"\xff", headers, NEW),
        (body, {**headers, "webhook-id": "w2"}, NEW),
        (body, {**headers, "webhook-signature": "garbage"}, NEW),
        (body, {}, NEW),
        (*late, NEW),
        (*early, NEW),
    ):
        with pytest.raises(InvalidWebhook, match="not a webhook of a known sender"):
            verify(*wrong, Completed[Parcel])


def test_a_genuine_one_of_another_kind_is_a_contract_error():
    """The type, or a result that is none."""
    with pytest.raises(ContractError, match="umbel.completed: type: expected umbel.failed"):
        verify(*told(), NEW, Failed)
    with pytest.raises(ContractError, match="result"):
        verify(*told(), NEW, Completed[list[int]])


@pytest.fixture
def pack(app_dir):
    """Factory of a job of an app with settings."""

    class Pack(Message, name="shop.pack", version=1):
        pass

    def make(**settings):
        app = Umbel("shop", broker="redis://localhost:1", **settings)

        @app.job
        def pack(message: Pack) -> Parcel:
            return Parcel(grams=1)

        app.sender.send = lambda job, message, options: options["headers"]
        return lambda url: pack.send(Pack(), on_success=url)["umbel-on-success"]

    return make


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("http://hooks.example/", "expected https://host/"),
        ("ftp://hooks.example/", "expected https://host/"),
        ("hooks.example", "expected https://host/"),
        ("https://", "expected https://host/"),
        ("https:///path", "expected https://host/"),
        ("https://me:geheim@hooks.example/", "no user and password"),
        ("https://hooks.example:99999/", "Port out of range"),
        ("https://hooks.example/a b", "without spaces"),
        ("https://hooks.example/\r\nx: y", "without spaces"),
        ("https://hörer.example/", "of ASCII"),
        ("https://hooks.example/" + "x" * 2000, "at most 2000 characters"),
        ("https://127.0.0.1/", "the address is not public; webhook_allow= can allow it"),
        ("https://[::ffff:10.0.0.1]:8443/", "the address is not public"),
        ("https://169.254.169.254/latest?key=geheim", "the address is not public"),
    ],
)
def test_what_can_be_known_is_refused_at_send(pack, url, problem):
    """Nothing is sent, and what may be secret is not in the error."""
    with pytest.raises(ContractError, match=problem) as caught:
        pack(webhook_secrets=[NEW])(url)
    assert str(caught.value).startswith("shop.pack: on_success=")
    assert "geheim" not in str(caught.value)


def test_what_is_allowed_is_sent(pack):
    """By the settings where it takes one."""
    usual = pack(webhook_secrets=NEW)
    assert usual("https://hooks.example:8443/a?b") == {"url": "https://hooks.example:8443/a?b"}
    lax = pack(webhook_secrets=[NEW], webhook_allow_http=True, webhook_allow=["127.0.0.0/8"])
    assert lax("http://127.0.0.1:80/") == {"url": "http://127.0.0.1:80/"}


def test_without_a_secret_nothing_goes_to_a_url(pack):
    """The error says what to set."""
    with pytest.raises(SettingsError, match="set UMBEL_WEBHOOK_SECRETS"):
        pack()("https://hooks.example/")


def test_a_wrong_secret_is_not_shown(pack, monkeypatch):
    """Errors end in logs, and so do the errors that they come from."""
    monkeypatch.setenv("UMBEL_WEBHOOK_SECRETS", f"{NEW}, whsec_geheim")
    with pytest.raises(SettingsError, match="24 to 64 bytes in base64") as caught:
        pack()("https://hooks.example/")
    assert "geheim" not in str(caught.value) + str(caught.value.__cause__)
    with pytest.raises(SettingsError, match="webhook_allow"):
        _ = Umbel("shop", webhook_allow=["10.0.0.1/8"]).settings


def test_an_app_without_secrets_has_no_queue_for_them(app_dir):
    """And one that has them declares job and queue when it is finalised, and asks for no server."""
    plain = Umbel("shop", broker="redis://localhost:1")
    signing = Umbel("shop", broker="redis://localhost:1", webhook_secrets=[NEW])
    for app in (plain, signing):
        assert app.work_queues == {}
        app.finalize()
    assert "shop.webhooks" not in plain.amqp.queues
    assert "shop.webhooks" in signing.amqp.queues
    assert signing.jobs["umbel.webhook"].timeout_s == 30
    assert signing.contracts == {}


def test_logs_and_flower_see_no_query_and_no_result():
    """Either may be secret."""
    call = WebhookCall(
        url="https://me:a@hooks.example/x?token=geheim",
        type="umbel.completed",
        timestamp=datetime.now(UTC),
        data={"job": "shop.pack", "job_id": "j1", "result": "geheim"},
    )
    assert shown(call) == (
        "WebhookCall(url='https://hooks.example/x?…', type='umbel.completed', job='shop.pack', "
        "job_id='j1')"
    )

"""Where a callback to a URL may go, and for how long: against a real HTTPS server."""

from __future__ import annotations

import socket
import time

import pytest

from umbel import Settings
from umbel.consumers.guard import UNDELIVERED, AddressRefused, post

BODY = b'{"type":"t"}'
HEADERS = {"content-type": "application/json"}


@pytest.fixture
def settings(app_dir, receiver):
    """Factory of settings that trust in the receiver's certificate."""

    def make(**given) -> Settings:
        return Settings.load(**{"webhook_ca_file": receiver.ca_file} | given)

    return make


@pytest.fixture
def resolve(monkeypatch):
    """Names that resolve to something else each time; returns what was asked for."""
    real, asked = socket.getaddrinfo, []

    def use(name: str, *answers: tuple[str, ...]):
        left = list(answers)

        def getaddrinfo(host, port, *args, **options):
            host = host.decode() if isinstance(host, bytes) else host
            if host != name:
                return real(host, port, *args, **options)
            asked.append(host)
            hosts = left.pop(0)
            return [found for one in hosts for found in real(one, port, *args, **options)]

        monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
        monkeypatch.setattr("umbel.consumers.guard.getaddrinfo", getaddrinfo)
        return asked

    return use


def test_a_loopback_address_is_refused_unless_allowed(settings, receiver):
    """By its network or by its name; nothing comes to the server otherwise."""
    with pytest.raises(AddressRefused, match=r"127.0.0.1 is 127.0.0.1: not public; webhook_allow="):
        post(receiver.url("/a"), HEADERS, BODY, settings())
    for allowed in ("127.0.0.0/8", "127.0.0.1"):
        status, _ = post(receiver.url("/b"), HEADERS, BODY, settings(webhook_allow=allowed))
        assert status == 204
    assert [(one.path, one.body) for one in receiver.posted] == [("/b", BODY)] * 2


def test_what_was_checked_is_what_is_connected_to(settings, start_receiver, receiver, resolve):
    """DNS rebinding: the first answer is permitted, the next is the victim's address.

    Each POST asks once; certificate and ``Host`` are those of the name.
    """
    victim = receiver
    permitted = start_receiver("127.0.0.2", victim.port)
    asked = resolve("hooks.example", ("127.0.0.2",), ("127.0.0.1",), ("127.0.0.2",))
    url, only = permitted.url("/", "hooks.example"), settings(webhook_allow="127.0.0.2/32")
    assert post(url, HEADERS, BODY, only)[0] == 204
    with pytest.raises(AddressRefused, match="hooks.example is 127.0.0.1: not public"):
        post(url, HEADERS, BODY, only)
    assert post(url, HEADERS, BODY, only)[0] == 204
    assert len(asked) == 3
    assert (len(permitted.posted), victim.posted, victim.names) == (2, [], [])
    assert permitted.names == ["hooks.example"] * 2
    assert permitted.posted[0].headers["host"] == f"hooks.example:{permitted.port}"


def test_one_forbidden_address_among_several_is_enough(settings, receiver, resolve):
    """Whoever owns the name could have the forbidden one tried last."""
    resolve("hooks.example", ("127.0.0.1", "169.254.169.254"))
    allowed = settings(webhook_allow="127.0.0.1/32")
    with pytest.raises(AddressRefused, match="127.0.0.1, 169.254.169.254"):
        post(receiver.url("/", "hooks.example"), HEADERS, BODY, allowed)
    assert receiver.posted == []


def test_the_next_address_is_tried(settings, receiver, resolve):
    """Nobody listens at the first."""
    resolve("hooks.example", ("127.0.0.9", "127.0.0.1"))
    allowed = settings(webhook_allow="hooks.example")
    assert post(receiver.url("/", "hooks.example"), HEADERS, BODY, allowed)[0] == 204


def test_a_redirect_is_not_followed(settings, start_receiver, receiver):
    """Not even to a place that would be permitted: it is an answer like any other."""
    other = start_receiver()
    receiver.answers["/"].append((307, {"location": other.url("/there")}))
    status, _ = post(receiver.url("/"), HEADERS, BODY, settings(webhook_allow="127.0.0.1"))
    assert (status, other.posted) == (307, [])


def test_proxies_of_the_environment_are_not_asked(settings, receiver, monkeypatch):
    """A proxy would connect to what nobody here has checked."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    allowed = settings(webhook_allow="127.0.0.1")
    assert post(receiver.url("/"), HEADERS, BODY, allowed)[0] == 204


def test_an_unknown_certificate_is_refused(settings, receiver):
    """Before anything is sent."""
    strict = settings(webhook_allow="127.0.0.1", webhook_ca_file=None)
    with pytest.raises(UNDELIVERED, match="CERTIFICATE_VERIFY_FAILED"):
        post(receiver.url("/"), HEADERS, BODY, strict)
    assert receiver.posted == []


def test_the_deadline_is_one_for_all(settings, receiver):
    """A receiver that sends a byte now and then holds a worker no longer than any other."""

    def drip(handler):
        for byte in b"HTTP/1.1 200 OK\r\n" + b"x: y\r\n" * 1000:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.05)

    receiver.answers["/"].append(drip)
    quick = settings(webhook_allow="127.0.0.1", webhook_timeout_s=0.4)
    with pytest.raises(UNDELIVERED):
        post(receiver.url("/"), HEADERS, BODY, quick)


def test_an_answer_without_end_is_not_read(settings, receiver):
    """Its status says all."""

    def flood(handler):
        handler.send_response(200)
        handler.end_headers()
        while True:  # until the client goes away
            handler.wfile.write(b"x" * 65536)

    receiver.answers["/"].append(flood)
    assert post(receiver.url("/"), HEADERS, BODY, settings(webhook_allow="127.0.0.1"))[0] == 200

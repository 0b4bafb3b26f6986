"""Who may enter, and how it is said who may not: TLS and ACLs on real servers."""

from __future__ import annotations

import asyncio
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from types import ModuleType

import kombu.pools
import pytest
from support.process import LocalProcess
from support.servers import certify, claim_port

from umbel import BrokerUnavailable, MessageRefused

DOCS = Path(__file__).parents[2] / "docs"

APP = """
from umbel import Message, Umbel

app = Umbel("shop", publish_timeout_s=2)

class Say(Message, name="shop.say", version=1):
    text: str

@app.job
def say(message: Say) -> str:
    return message.text
"""


class Redis(LocalProcess):
    """Debian's, which has TLS; Valkey's wheel has not."""

    def __init__(self, directory: Path) -> None:
        if not shutil.which("redis-server"):
            pytest.skip("no Redis: apt-get install redis-server")
        self.certificate = certify(directory)
        self.port = claim_port()
        tls = f"--tls-cert-file {self.certificate} --tls-key-file {self.certificate}"
        super().__init__(
            name="redis",
            command=[
                *("redis-server", "--port", "0", "--tls-port", str(self.port)),
                *("--bind", "127.0.0.1", "--save", "", "--tls-auth-clients", "no"),
                *(*tls.split(), "--tls-ca-cert-file", self.certificate),
            ],
            cwd=directory,
            ready="Ready to accept connections",
        )


@pytest.fixture
def with_tls(tmp_path: Path) -> Iterator[Redis]:
    """A server that speaks TLS alone, with a certificate that only it has signed."""
    with ExitStack() as stack:
        (directory := tmp_path / "redis").mkdir()
        yield stack.enter_context(closing(Redis(directory))).start()
    kombu.pools.reset()


@pytest.fixture
def shop_at(write_app, start_worker, monkeypatch) -> Callable[[str], ModuleType]:
    """Factory `shop_at(url) -> module`: the app above with a broker of that URL."""

    def at(url: str) -> ModuleType:
        monkeypatch.setenv("UMBEL_BROKER_URL", url)
        shop = write_app(APP)
        _ = shop.app.settings  # read now, while it is this
        return shop

    return at


# TLS.


def test_a_certificate_that_is_known_is_enough(with_tls, shop_at, start_worker, monkeypatch):
    """In the URL alone: broker, store, worker and async code."""
    url = f"rediss://127.0.0.1:{with_tls.port}/0?ssl_ca_certs={with_tls.certificate}"
    shop = shop_at(url)
    monkeypatch.setenv("UMBEL_BROKER_URL", url)
    start_worker(shop, env={"UMBEL_BROKER_URL": url})
    assert shop.say.request(shop.Say(text="safe")).result(10) == "safe"
    shop.say.send_many([shop.Say(text="many")])

    async def ask() -> str:
        handle = await shop.say.arequest(shop.Say(text="async"))
        return await handle.aresult(10)

    assert asyncio.run(ask()) == "async"


def test_a_certificate_that_is_unknown_is_refused(with_tls, shop_at):
    """By default, without a word in the settings."""
    shop = shop_at(f"rediss://127.0.0.1:{with_tls.port}/0")
    for send in (shop.say.send, shop.say.request):
        with pytest.raises(BrokerUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
            send(shop.Say(text="?"))


def test_a_certificate_of_another_host_is_refused(with_tls, shop_at):
    """Known, but not of the host of the URL."""
    known = f"?ssl_ca_certs={with_tls.certificate}"
    shop = shop_at(f"rediss://localhost:{with_tls.port}/0{known}")
    with pytest.raises(BrokerUnavailable, match="CERTIFICATE_VERIFY_FAILED|Hostname mismatch"):
        shop.say.send(shop.Say(text="?"))


def test_plain_text_at_a_tls_port_does_not_hang(with_tls, shop_at):
    """Nor the other way round."""
    shop = shop_at(f"redis://127.0.0.1:{with_tls.port}/0")
    with pytest.raises(BrokerUnavailable, match=r"redis://127.0.0.1:\d+/0 within 2 s"):
        shop.say.send(shop.Say(text="?"))


# Rights.


def rights() -> str:
    """The line of the docs."""
    [line] = re.findall(r"^ACL SETUSER shop (.+)$", (DOCS / "valkey.md").read_text(), re.MULTILINE)
    return line


def test_the_rights_of_the_docs_are_enough(valkey, shop_at, start_worker):
    """For whole tracked jobs: sent in each way, run, followed, cancelled."""
    client = valkey.client()
    client.execute_command("ACL", "SETUSER", "shop", *rights().split())
    client.execute_command("ACL", "SETUSER", "default", "off")
    url = valkey.url.replace("redis://", "redis://shop:password@")
    shop = shop_at(url)
    worker = start_worker(shop, env={"UMBEL_BROKER_URL": url})
    assert shop.say.request(shop.Say(text="allowed")).result(10) == "allowed"
    shop.say.send(shop.Say(text="x"))
    shop.say.delay(shop.Say(text="x"))
    shop.say.send_many([shop.Say(text="x")])
    late = shop.say.request(shop.Say(text="late"), delay_s=1)
    assert late.result(10) == "late"
    assert shop.say.request(shop.Say(text="x"), delay_s=60).cancel()
    worker.stop()
    assert "NOPERM" not in worker.logs()
    assert "no beat" not in worker.logs()


def test_a_right_that_is_missing_is_named(valkey, shop_at):
    """By the error at send, and by the server's `ACL LOG`."""
    client = valkey.client()
    client.execute_command("ACL", "SETUSER", "shop", *rights().split(), "-lpush")
    shop = shop_at(valkey.url.replace("redis://", "redis://shop:password@"))
    with pytest.raises(MessageRefused, match="'lpush'"):
        shop.say.send(shop.Say(text="?"))
    assert client.acl_log()[0]["object"] == "lpush"
    client.execute_command("ACL", "SETUSER", "shop", "+lpush")
    shop.say.send(shop.Say(text="now"))
    assert client.llen("shop") == 1


def test_a_wrong_password_is_an_error_at_once(valkey, shop_at):
    """With the server's words, and without the password."""
    client = valkey.client()
    client.execute_command("ACL", "SETUSER", "shop", *rights().split())
    shop = shop_at(valkey.url.replace("redis://", "redis://shop:wrong@"))
    with pytest.raises(
        (BrokerUnavailable, MessageRefused), match="WRONGPASS|invalid username"
    ) as e:
        shop.say.send(shop.Say(text="?"))
    assert "wrong@" not in str(e.value)

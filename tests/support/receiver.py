"""A receiver of callbacks: a real HTTPS server with a certificate of the test's own authority."""

from __future__ import annotations

import ssl
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import trustme

Answer = int | tuple[int, dict[str, str]] | Callable[[BaseHTTPRequestHandler], None]
"""A status, one with headers, or a function that answers."""


@dataclass(frozen=True)
class Posted:
    """A request that came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        """The webhook's."""
        return self.headers["webhook-id"]


class Receiver(ThreadingHTTPServer):
    """Answers 204 unless told otherwise for a path.

    Attributes:
        posted: what came, in order.
        answers: what is answered next, by path; the last one for ever.
        names: what clients asked for when the connection was made (SNI).
        ca_file: the certificate of its authority.
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self, host: str, port: int, context: ssl.SSLContext, ca_file: Path) -> None:
        self.posted: list[Posted] = []
        self.answers: dict[str, deque[Answer]] = defaultdict(deque)
        self.names: list[str | None] = []
        self.ca_file = ca_file
        self._context = context
        super().__init__((host, port), _Handler)

    @property
    def port(self) -> int:
        """Where it listens."""
        return self.server_address[1]

    def url(self, path: str = "/", host: str = "") -> str:
        """A URL of its own."""
        return f"https://{host or self.server_address[0]}:{self.port}{path}"

    def at(self, path: str) -> list[Posted]:
        """What came there."""
        return [one for one in self.posted if one.path == path]

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Each connection in its own thread, handshake included."""
        with self._context.wrap_socket(request, server_side=True) as secure:
            super().finish_request(secure, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        headers = {name.lower(): value for name, value in self.headers.items()}
        answers = self.server.answers[self.path]
        answer = (answers.popleft() if len(answers) > 1 else answers[0]) if answers else 204
        self.server.posted.append(Posted(self.path, headers, body))
        if callable(answer):
            answer(self)
            return
        status, extra = answer if isinstance(answer, tuple) else (answer, {})
        self.send_response(status)
        for name, value in {"content-length": "0", **extra}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture
def start_receiver(tmp_path: Path) -> Iterator[Callable[..., Receiver]]:
    """Factory `start_receiver(host="127.0.0.1", port=0)`, all of one authority."""
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1", "127.0.0.2", "hooks.example")
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(ca_file)
    with ExitStack() as stack:

        def start(host: str = "127.0.0.1", port: int = 0) -> Receiver:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            certificate.configure_cert(context)
            receiver = Receiver(host, port, context, ca_file)
            context.sni_callback = lambda _socket, name, _context: receiver.names.append(name)
            stack.enter_context(_serving(receiver))
            return receiver

        yield start


@pytest.fixture
def receiver(start_receiver: Callable[..., Receiver]) -> Receiver:
    """One on 127.0.0.1."""
    return start_receiver()


@contextmanager
def _serving(receiver: Receiver) -> Iterator[None]:
    thread = Thread(target=receiver.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        receiver.shutdown()
        receiver.server_close()
        thread.join()

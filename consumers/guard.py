"""One POST to a URL that somebody else has named: to a permitted address, once, and not for long.

Where the connection is made is the only place at which it is known where to. So this is below the
HTTP client: the name is resolved once, all its addresses are checked, and one of these is connected
to, while certificate and ``Host`` are still those of the name. A name that resolves to something
else a moment later changes nothing. Nothing here follows redirects or asks a proxy.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Mapping
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from socket import SOCK_STREAM, gaierror, getaddrinfo
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import httpcore

from umbel.config.settings import Settings
from umbel.jobs.addresses import Address, may_reach

UNDELIVERED = (
    httpcore.NetworkError,
    httpcore.TimeoutException,
    httpcore.ProtocolError,
)
"""What says that there was no answer."""


class AddressRefused(Exception):
    """A name stands for an address to which no callback may go."""


def post(
    url: str, headers: Mapping[str, str], body: bytes, settings: Settings
) -> tuple[int, dict[str, str]]:
    """The answer's status and headers; its body is not read.

    Raises:
        AddressRefused: nothing was connected to.
        httpcore.NetworkError: and the others of `UNDELIVERED`: no answer in ``webhook_timeout_s``.
    """
    backend = Guarded(settings.webhook_allow, monotonic() + settings.webhook_timeout_s)
    context = _trusting(settings.webhook_ca_file)
    sent = [("Host", urlsplit(url).netloc), *headers.items()]
    with (
        httpcore.ConnectionPool(ssl_context=context, network_backend=backend) as pool,
        pool.stream("POST", url, headers=sent, content=body) as answer,
    ):
        pairs = ((name.decode().lower(), text.decode("latin-1")) for name, text in answer.headers)
        return answer.status, dict(pairs)


@cache
def _trusting(ca_file: Path | None) -> ssl.SSLContext:
    """Once for each process: reading the public certificates takes longer than a POST."""
    context = httpcore.default_ssl_context()
    if ca_file:
        context.load_verify_locations(ca_file)
    return context


class Guarded(httpcore.NetworkBackend):
    """Connects to what is permitted, until a deadline.

    Args:
        allowed: hosts and networks that are permitted though they are not public.
        deadline: on the monotonic clock; then everything fails.
    """

    def __init__(self, allowed: Iterable[str], deadline: float) -> None:
        self._allowed = tuple(allowed)
        self._deadline = deadline
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """To the first of the name's addresses that answers."""
        addresses = resolved(host, port)
        if not may_reach(host, addresses, self._allowed):
            shown = ", ".join(map(str, addresses))
            raise AddressRefused(f"{host} is {shown}: not public; webhook_allow= can allow it")
        for others in reversed(range(len(addresses))):
            address, share_s = addresses.pop(0), time_left(self._deadline) / (others + 1)
            try:
                stream = self._plain.connect_tcp(
                    str(address), port, share_s, local_address, socket_options
                )
                return _Timed(stream, self._deadline)
            except (httpcore.ConnectError, httpcore.ConnectTimeout):
                if not others:
                    raise
        raise httpcore.ConnectError(f"{host} has no address")


def resolved(host: str, port: int) -> list[Address]:
    """The addresses of a name, those to be tried first in front.

    Raises:
        httpcore.ConnectError: it has none.
    """
    try:
        found = getaddrinfo(host, port, type=SOCK_STREAM)
    except (gaierror, UnicodeError) as error:  # the latter: a label of the name is too long
        raise httpcore.ConnectError(f"{host}: {error}") from error
    return list(dict.fromkeys(ip_address(sockaddr[0]) for *_, sockaddr in found))


def time_left(deadline: float) -> float:
    """Seconds until then.

    Raises:
        httpcore.ReadTimeout: it has passed.
    """
    left_s = deadline - monotonic()
    if left_s <= 0:
        raise httpcore.ReadTimeout("no answer in time")
    return left_s


class _Timed(httpcore.NetworkStream):
    """A connection with one deadline; httpcore's own timeouts begin anew with each byte."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, time_left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, time_left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left_s = time_left(self._deadline)
        return _Timed(self._stream.start_tls(ssl_context, server_hostname, left_s), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)

"""Which addresses a callback may go to: the public internet, and what the settings allow.

Whoever names a URL makes a worker connect to it, and workers stand where others may not
(server-side request forgery, OWASP).
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import (
    IPv4Address,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)

Address = IPv4Address | IPv6Address

# All of IPv6 that is handed out. What carries an IPv4 address inside (mapped, compatible, NAT64) is
# outside of it, and so are loopback, link-local, unique local and multicast addresses.
_UNICAST = IPv6Network("2000::/3")
# Public by the letter: 6to4 (an IPv4 address inside), what older Pythons take for global, and the
# address at which Azure tells machines their secrets.
_EXCEPTED = tuple(map(ip_network, ("2002::/16", "192.0.0.0/24", "168.63.129.16/32")))


def is_public(address: Address) -> bool:
    """Whether it belongs to a machine somewhere on the internet.

    >>> [is_public(ip_address(one)) for one in ("93.184.215.14", "10.0.0.7", "::ffff:8.8.8.8")]
    [True, False, False]
    """
    if not address.is_global or address.is_multicast or address.is_reserved:
        return False
    if isinstance(address, IPv6Address) and address not in _UNICAST:
        return False
    return not any(address in network for network in _EXCEPTED)


def may_reach(host: str, addresses: Iterable[Address], allowed: Iterable[str]) -> bool:
    """Whether each of a host's addresses is public, or allowed: by its network, or by the name.

    >>> may_reach("hooks.lan", [ip_address("10.0.0.7")], ["10.0.0.0/8"])
    True
    >>> may_reach("hooks.lan", [ip_address("10.0.0.7"), ip_address("127.0.0.1")], ["10.0.0.0/8"])
    False

    Args:
        host: as the URL has it.
        addresses: all that its name resolves to.
        allowed: host names, addresses and networks (``10.0.0.0/8``).
    """
    networks = []
    for one in allowed:
        try:
            networks.append(ip_network(one))
        except ValueError:
            if one.lower() == host.lower():
                return True
    return all(is_public(one) or any(one in network for network in networks) for one in addresses)


def literal(host: str) -> Address | None:
    """The address that a host is, where it is one and no name."""
    try:
        return ip_address(host)
    except ValueError:
        return None

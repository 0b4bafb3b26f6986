"""Which addresses are public."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from umbel.jobs.addresses import is_public, may_reach

PUBLIC = ["93.184.215.14", "1.1.1.1", "2606:4700:4700::1111", "2a00:1450:4001::1"]
REFUSED = {
    "private": ["10.0.0.1", "172.16.0.1", "192.168.0.1", "100.64.0.1", "fc00::1", "fd00:ec2::254"],
    "loopback": ["127.0.0.1", "127.255.255.254", "::1"],
    "link-local": ["169.254.1.1", "fe80::1", "fe80::1%eth0", "fec0::1"],
    "metadata": ["169.254.169.254", "100.100.100.200", "192.0.0.192", "168.63.129.16"],
    "multicast": ["224.0.0.1", "239.255.255.250", "ff02::1", "ff0e::1"],
    "unspecified": ["0.0.0.0", "::"],
    "reserved": ["240.0.0.1", "255.255.255.255", "198.18.0.1", "192.0.2.1", "2001:db8::1"],
    "mapped": ["::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:a9fe:a9fe", "::127.0.0.1"],
    "6to4": ["2002:7f00:1::", "2002:808:808::1"],
    "teredo": ["2001:0:4136:e378:8000:63bf:3fff:fdd2"],
    "NAT64": ["64:ff9b::7f00:1", "64:ff9b::808:808", "64:ff9b:1::a00:1"],
}


@pytest.mark.parametrize("address", PUBLIC)
def test_what_is_somewhere_on_the_internet_is_public(address):
    """In both versions of IP."""
    assert is_public(ip_address(address))


@pytest.mark.parametrize("kind", REFUSED)
def test_the_rest_is_not(kind):
    """With each way to write an IPv4 address inside an IPv6 one."""
    assert [one for one in REFUSED[kind] if is_public(ip_address(one))] == []


def test_what_is_allowed_is_allowed_and_no_more():
    """A network allows its addresses, a host's name all that it resolves to."""
    metadata, private = ip_address("169.254.169.254"), ip_address("10.1.2.3")
    assert may_reach("x.lan", [private], ["10.0.0.0/8"])
    assert may_reach("X.lan", [private, metadata], ["x.LAN"])
    assert not may_reach("x.lan", [private, metadata], ["10.0.0.0/8", "y.lan"])
    assert not may_reach("evil.x.lan", [private], ["x.lan"])

import asyncio
from ipaddress import ip_address, ip_network

import pytest

from service.addresses import is_host_allowed, is_ip_allowed, resolve

REFUSED = [
    *["127.0.0.1", "127.1.2.3", "0.0.0.0", "10.0.0.5", "172.16.0.1", "172.31.255.255"],
    *["192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1", "239.255.255.250"],
    *["240.0.0.1", "255.255.255.255", "192.0.2.1", "198.18.0.1", "203.0.113.7"],
    *["::", "::1", "fe80::1", "fc00::1", "fd12:3456::1", "ff02::1", "fec0::1", "2001:db8::1"],
    *["::ffff:127.0.0.1", "::ffff:10.0.0.5", "::ffff:169.254.169.254", "::127.0.0.1"],
    *["64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "2002:a00:5::1"],
    "2001:0:4136:e378:8000:63bf:80ff:fffe",  # Teredo, to 127.0.0.1
]


@pytest.mark.parametrize("address", REFUSED)
def test_addresses_that_are_not_public_are_refused(address):
    assert not is_ip_allowed(ip_address(address), ())


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "93.184.216.34",
        "172.32.0.1",
        "2606:4700::1111",
        "::ffff:1.1.1.1",
        "2002:101:101::",
    ],
)
def test_public_addresses_are_allowed(address):
    assert is_ip_allowed(ip_address(address), ())


@pytest.mark.parametrize("address", ["10.1.2.3", "::ffff:10.1.2.3"])
def test_a_network_that_is_named_is_allowed_and_no_other(address):
    networks = (ip_network("10.1.0.0/16"), ip_network("fd00:1::/32"))
    assert is_ip_allowed(ip_address(address), networks)
    assert is_ip_allowed(ip_address("fd00:1::7"), networks)
    assert not is_ip_allowed(ip_address("10.2.0.1"), networks)
    assert not is_ip_allowed(ip_address("fd00:2::1"), networks)


@pytest.mark.parametrize(
    ("host", "port", "is_allowed"),
    [
        ("images.example.org", 443, True),
        ("IMAGES.example.org.", 443, True),
        ("images.example.org", 8443, False),
        ("a.cdn.example.org", 443, True),
        ("a.b.cdn.example.org", 443, True),
        ("cdn.example.org", 443, False),
        ("evilcdn.example.org", 443, False),
        ("images.example.org.evil.net", 443, False),
        ("evil-images.example.org", 443, False),
        ("store", 9000, True),
        ("store", 443, False),
        ("::1", 8080, True),
        ("::1", 443, False),
        ("", 443, False),
    ],
)
def test_hosts_are_held_against_the_list(host, port, is_allowed):
    patterns = ("images.example.org", "*.cdn.example.org", "store:9000", "[::1]:8080")
    assert is_host_allowed(host, port, "https", patterns) == is_allowed


@pytest.mark.parametrize(
    ("port", "is_allowed"), [(443, True), (80, False), (22, False), (0, False)]
)
def test_without_a_list_every_host_is_allowed_on_the_schemes_own_port(port, is_allowed):
    assert is_host_allowed("any.example", port, "https", ()) == is_allowed


@pytest.mark.parametrize("host", ["127.0.0.1", "2130706433", "0x7f.1", "0177.0.0.1", "127.1"])
def test_every_way_to_write_an_address_is_seen_as_what_it_is(host):
    assert asyncio.run(resolve(host, 80)) == [ip_address("127.0.0.1")]

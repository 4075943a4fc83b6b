"""Images given by address: what an address is, and which ones the service may go to.

A client that may name an address could have the service ask what only the service may: its own
machine, its neighbours, a cloud's metadata. These are the rules against it; `fetch` obeys them.
"""

import asyncio
import re
import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import NamedTuple

from service.errors import ServiceError

IP = IPv4Address | IPv6Address
Networks = tuple[IPv4Network | IPv6Network, ...]

PORTS = {"http": 80, "https": 443}

HOST_PATTERN = re.compile(r"(?P<host>\[.*\]|[^:]*)(?::(?P<port>\d+))?")

EMBEDDING = (ip_network("64:ff9b::/96"), ip_network("::/96"))
"""IPv6 addresses (NAT64, IPv4-compatible) whose last four bytes are the IPv4 address meant."""


class Address(str):
    """An image's address, not yet fetched."""

    __slots__ = ()


Source = bytes | Address | ServiceError
"""An image as a call gives it: a file's bytes, an address, or why there is neither."""


class UrlRules(NamedTuple):
    """What is fetched.

    Attributes:
        schemes: `http`, `https` or both.
        hosts: Names allowed, `*.example.org` for all below one, `host:port` for another port than
            the scheme's own; empty allows every public host.
        networks: Networks allowed though they are not public.
        timeout_s: Seconds for one address, redirects included.
        max_bytes: Of all images of a call together.
        max_redirects: How many are followed.
        ca_file: PEM file of authorities to trust beside the public ones.
    """

    schemes: tuple[str, ...] = ("https", "http")
    hosts: tuple[str, ...] = ()
    networks: Networks = ()
    timeout_s: float = 10.0
    max_bytes: int = 20_000_000
    max_redirects: int = 3
    ca_file: Path | None = None


async def resolve(host: str, port: int) -> list[IP]:
    """Ask the system what a name means."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [ip_address(str(address[0]).partition("%")[0]) for *_, address in found]


def is_host_allowed(host: str, port: int, scheme: str, patterns: Sequence[str]) -> bool:
    """Hold a host and its port against the allow-list."""
    host = host.lower().rstrip(".")
    if not patterns:
        return port == PORTS[scheme]
    for pattern in patterns:
        found = HOST_PATTERN.fullmatch(pattern.lower())
        if found is None or port != int(found["port"] or PORTS[scheme]):
            continue
        name = found["host"].strip("[]").rstrip(".")
        if host == name or (name.startswith("*.") and host.endswith(name[1:])):
            return True
    return False


def is_ip_allowed(ip: IP, networks: Networks) -> bool:
    """Tell whether an address is public, or in a network that is allowed in spite of not being."""
    meant = _meant(ip)
    if any(meant in network for network in networks):
        return True
    is_special = meant.is_multicast or meant.is_reserved or meant.is_unspecified
    is_local = isinstance(meant, IPv6Address) and meant.is_site_local
    return meant.is_global and not is_special and not is_local


def _meant(ip: IP) -> IP:
    """Give the IPv4 address that an IPv6 address stands for, else itself."""
    if isinstance(ip, IPv4Address):
        return ip
    if any(ip in network for network in EMBEDDING):
        return IPv4Address(int(ip) & 0xFFFFFFFF)
    return ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None) or ip

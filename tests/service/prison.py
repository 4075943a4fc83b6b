"""Run inside of a network namespace of its own: may an address lead to where nobody should get?

Every address below has a canary behind it, on this namespace's own loopback interface. Prints what
each refused address answered, and ends with 1 if one canary was reached or the allowed one was not.
"""

import asyncio
import sys
from contextlib import ExitStack
from ipaddress import ip_network
from urllib.request import urlopen

from service.addresses import Address, UrlRules
from service.fetch import Fetcher
from tests.service.canary import canary

FORBIDDEN = ("169.254.169.254", "10.0.0.5", "127.0.0.1", "192.168.7.7", "100.64.0.9")
ALLOWED = "10.9.0.5"
PORT = 80

WAYS = [
    *[f"http://{host}/picture" for host in FORBIDDEN],
    *[f"http://{ALLOWED}/to?http://{host}/picture" for host in FORBIDDEN],
    f"http://{ALLOWED}/to?http://{ALLOWED}/to?http://169.254.169.254/picture",
    *[
        "http://2852039166/picture",
        "http://0xa9fea9fe/picture",
        "http://0251.0376.0251.0376/picture",
    ],
    *["http://[::ffff:169.254.169.254]/picture", "http://[::ffff:a9fe:a9fe]/picture"],
    *["http://[64:ff9b::a9fe:a9fe]/picture", "http://0/picture", "http://127.1/picture"],
    *[
        "http://localhost/picture",
        "http://x@10.0.0.5/picture",
        f"http://{ALLOWED}@10.0.0.5/picture",
    ],
]


async def main() -> list[object]:
    """Try all ways under rules that let every public host and one network in."""
    rules = UrlRules(networks=(ip_network("10.9.0.0/16"),), timeout_s=20, max_redirects=5)
    addresses = [Address(way) for way in (*WAYS, f"http://{ALLOWED}/picture")]
    async with Fetcher(rules, max_bytes_held=10**9).fetched(addresses) as files:
        return list(files)


if __name__ == "__main__":
    with ExitStack() as stack:
        birds = {
            host: stack.enter_context(canary(b"picture", host, PORT))
            for host in (*FORBIDDEN, ALLOWED)
        }
        *refused, allowed = asyncio.run(main())
        reached = [host for host in FORBIDDEN if birds[host].asked]
        for host in FORBIDDEN:  # nothing but the rules kept them silent
            assert urlopen(f"http://{host}/picture").read() == b"picture"
    for way, answer in zip(WAYS, refused, strict=True):
        sys.stdout.write(f"{way} {type(answer).__name__}\n")
    names = {type(answer).__name__ for answer in refused}
    is_kept = not reached and names <= {"UrlRefused", "UrlNotFetched"}
    sys.exit(0 if is_kept and allowed == b"picture" else 1)

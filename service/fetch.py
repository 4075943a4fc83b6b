"""Fetches images by address, under the rules of `addresses`.

Every address, and every redirect anew, is held against the allow-list, resolved once, and connected
to at the very address that was checked: what a name means cannot change in between. Nothing of the
environment (proxies, credentials) is used, no cookies are kept, and neither the size of a file nor
the time it takes can exceed its bound.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager

import httpx

from service import VERSION
from service.addresses import (
    IP,
    PORTS,
    Address,
    Source,
    UrlRules,
    is_host_allowed,
    is_ip_allowed,
    resolve,
)
from service.errors import Overloaded, ServiceError, UrlNotFetched, UrlRefused

Resolve = Callable[[str, int], Awaitable[list[IP]]]

MAX_URL_LENGTH = 2048

MAX_FETCHES = 8
"""Addresses fetched at once, of all calls together."""

REDIRECTS = (301, 302, 303, 307, 308)

REFUSED = "this address is not fetched: its scheme, host, port or network is not allowed"
"""One message for all causes: what a name resolves to in this network is not told."""

FAILED = "no file came from this address"
"""One message for all causes: which ports answer is not told either."""

HEADERS = {"accept": "image/*", "accept-encoding": "identity", "user-agent": f"esvit/{VERSION}"}


class _Budget:
    """Bytes that were fetched: those of one call and, in its parent, those of all."""

    def __init__(self, max_bytes: int, parent: "_Budget | None" = None) -> None:
        self._max_bytes = max_bytes
        self._parent = parent
        self._num_bytes = 0

    def take(self, num_bytes: int) -> None:
        """Account for bytes.

        Raises:
            UrlNotFetched: if the call has had its share.
            Overloaded: if all calls together have.
        """
        self._num_bytes += num_bytes
        if self._parent is None and self._num_bytes > self._max_bytes:
            raise Overloaded("too many bytes are on their way", limit=self._max_bytes)
        if self._parent is not None:
            self._parent.take(num_bytes)
        if self._num_bytes > self._max_bytes:
            limit = self._max_bytes
            raise UrlNotFetched(f"a call may fetch {limit:,} bytes at most", limit=limit)

    def let_go(self) -> None:
        """Give back what was taken."""
        if self._parent is not None:
            self._parent._num_bytes -= self._num_bytes
        self._num_bytes = 0


class Fetcher:
    """Fetches the addresses among the images of calls."""

    def __init__(self, rules: UrlRules, *, max_bytes_held: int, resolve: Resolve = resolve) -> None:
        """Set up.

        Args:
            rules: What is fetched.
            max_bytes_held: Bytes of all calls together.
            resolve: Gives the addresses of a name.
        """
        self._rules = rules
        self._resolve = resolve
        self._held = _Budget(max_bytes_held)
        self._slots = asyncio.Semaphore(MAX_FETCHES)
        trusted = httpx.create_ssl_context(trust_env=False)
        if rules.ca_file is not None:
            trusted.load_verify_locations(rules.ca_file)
        # Nothing is kept open: a connection that was checked for one name must not serve another.
        limits = httpx.Limits(max_keepalive_connections=0)
        self._transport = httpx.AsyncHTTPTransport(verify=trusted, trust_env=False, limits=limits)

    @asynccontextmanager
    async def fetched(self, images: Sequence[Source]) -> AsyncIterator[list[bytes | ServiceError]]:
        """Give images with every address replaced by its bytes, or by why there are none.

        The bytes are accounted for while the block runs.
        """
        budget = _Budget(self._rules.max_bytes, self._held)
        try:
            yield list(await asyncio.gather(*(self._settle(image, budget) for image in images)))
        finally:
            budget.let_go()

    async def _settle(self, image: Source, budget: _Budget) -> bytes | ServiceError:
        """Give one image; what is wrong with it concerns it alone."""
        if not isinstance(image, Address):
            return image
        try:
            async with asyncio.timeout(self._rules.timeout_s), self._slots:
                return await self._fetch(image, budget)
        except ServiceError as error:
            return error
        except (
            httpx.HTTPError,
            httpx.InvalidURL,
            OSError,
            ValueError,
        ):  # TimeoutError is an OSError
            return UrlNotFetched(FAILED)

    async def _fetch(self, address: str, budget: _Budget) -> bytes:
        """Fetch one address, following redirects, each one checked as the first."""
        max_redirects = self._rules.max_redirects
        if len(address) > MAX_URL_LENGTH:
            raise UrlRefused(f"an address has at most {MAX_URL_LENGTH} characters")
        url = httpx.URL(address)
        for _ in range(max_redirects + 1):
            response = await self._get(url, await self._check(url))
            try:
                if response.status_code not in REDIRECTS:
                    return await _read(response, budget)
                url = url.join(response.headers.get("location", ""))
            finally:
                await response.aclose()
        raise UrlNotFetched(f"more than {max_redirects} redirects")

    async def _check(self, url: httpx.URL) -> IP:
        """Give the address to connect to.

        Raises:
            UrlRefused: if the rules do not allow it, or only some of what its name resolves to.
        """
        rules = self._rules
        port = url.port or PORTS.get(url.scheme, 0)
        is_named = url.scheme in rules.schemes and bool(url.host) and not url.userinfo
        if not is_named or not is_host_allowed(url.host, port, url.scheme, rules.hosts):
            raise UrlRefused(REFUSED)
        found = await self._resolve(url.host, port)
        if not found or not all(is_ip_allowed(ip, rules.networks) for ip in found):
            raise UrlRefused(REFUSED)
        return found[0]

    async def _get(self, url: httpx.URL, ip: IP) -> httpx.Response:
        """Ask for an address at the IP address that was checked; TLS still checks the name."""
        request = httpx.Request(
            "GET",
            url.copy_with(host=str(ip), fragment=None),
            headers={"host": url.netloc.decode("ascii"), **HEADERS},
            extensions={"sni_hostname": url.raw_host.decode("ascii")},
        )
        return await self._transport.handle_async_request(request)


async def _read(response: httpx.Response, budget: _Budget) -> bytes:
    """Read a file, counting while it comes."""
    encoding = response.headers.get("content-encoding", "identity").lower()
    if response.status_code != 200 or encoding != "identity":
        raise UrlNotFetched(FAILED)
    assert isinstance(response.stream, httpx.AsyncByteStream)
    pieces = []
    async for piece in response.stream:
        budget.take(len(piece))
        pieces.append(piece)
    return b"".join(pieces)

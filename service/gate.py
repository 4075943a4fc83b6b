"""The ASGI layer round the application: request ids, body limits, departed clients, accounting.

Everything here must hold for every call, also for those that no route takes, and costs
microseconds: it is plain ASGI, not Starlette's middleware class.
"""

import asyncio
import logging
import random
import re
import time
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLarge, Overloaded, RequestTimeout
from service.metrics import Metrics

logger = logging.getLogger("service.access")

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

CLIENT_LEFT = 499
"""Status under which a call is counted whose client left before the answer."""


class BodyLimits(NamedTuple):
    """What a body may be: bytes of one, bytes of all held at once, seconds to arrive."""

    max_bytes: int
    max_bytes_held: int
    timeout_s: float


class Gate:
    """The outermost layer."""

    def __init__(self, app: ASGIApp, *, limits: BodyLimits, metrics: Metrics) -> None:
        """Wrap an application."""
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._bytes_held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        passage = _Passage(self, scope, receive, send)
        scope.setdefault("state", {})["request_id"] = passage.request_id
        started = time.perf_counter()
        try:
            await self._app(scope, passage.receive, passage.send)
        except asyncio.CancelledError:
            if not passage.has_client_left:
                raise
        finally:
            passage.close()
            self._count(scope, passage, time.perf_counter() - started)

    def hold(self, num_bytes: int) -> None:
        """Account for bytes of a body that is held (or, if negative, let go).

        Raises:
            Overloaded: if all bodies together become too large.
        """
        self._bytes_held += num_bytes
        if num_bytes > 0 and self._bytes_held > self._limits.max_bytes_held:
            raise Overloaded("too many bytes are on their way", limit=self._limits.max_bytes_held)

    @property
    def limits(self) -> BodyLimits:
        """What a body may be."""
        return self._limits

    def _count(self, scope: Scope, passage: "_Passage", seconds: float) -> None:
        """Count and log an answered call."""
        route = scope.get("route")
        path = getattr(route, "path", "other")  # a path of the client's would make endless series
        status = CLIENT_LEFT if passage.has_client_left else passage.status
        self._metrics.requests.labels(path, str(status)).inc()
        self._metrics.request_seconds.labels(path).observe(seconds)
        if logger.isEnabledFor(logging.INFO):
            logger.info(
                "%s %s %d %.1f ms %d bytes %s",
                scope["method"],
                path,
                status,
                1e3 * seconds,
                passage.num_bytes,
                passage.request_id,
            )


class _Passage:
    """One call on its way through the gate."""

    def __init__(self, gate: Gate, scope: Scope, receive: Receive, send: Send) -> None:
        self._gate = gate
        self._receive = receive
        self._send = send
        self._watcher: asyncio.Task[None] | None = None
        self._deadline = asyncio.get_running_loop().time() + gate.limits.timeout_s
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        self.request_id = (
            given if REQUEST_ID.fullmatch(given) else f"{random.getrandbits(128):032x}"
        )
        self._declared = headers.get("content-length", "")
        self.num_bytes = 0
        self.status = 500
        self.has_client_left = False

    async def receive(self) -> Message:
        """Receive a message, counting the body's bytes and seconds."""
        limits = self._gate.limits
        if self._declared.isdigit() and int(self._declared) > limits.max_bytes:
            raise _body_too_large(limits.max_bytes)
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            raise RequestTimeout(f"the body took over {limits.timeout_s:g} s") from error
        if message["type"] != "http.request":
            self.has_client_left = True
            return message
        num_bytes = len(message.get("body", b""))
        self.num_bytes += num_bytes
        self._gate.hold(num_bytes)
        if self.num_bytes > limits.max_bytes:
            raise _body_too_large(limits.max_bytes)
        if not message.get("more_body", False):
            self._watch()
        return message

    async def send(self, message: Message) -> None:
        """Send a message, with the request id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self.request_id.encode()),
            ]
        await self._send(message)

    def close(self) -> None:
        """Let go of what the call held."""
        self._gate.hold(-self.num_bytes)
        if self._watcher is not None:
            self._watcher.cancel()

    def _watch(self) -> None:
        """Cancel the call when its client leaves: from here on nothing else is received."""
        caller = asyncio.current_task()

        async def watch() -> None:
            message = await self._receive()
            if message["type"] == "http.disconnect" and caller is not None:
                self.has_client_left = True
                caller.cancel()

        self._watcher = asyncio.get_running_loop().create_task(watch())


def _body_too_large(limit: int) -> BodyTooLarge:
    """Say how large a body may be."""
    return BodyTooLarge(f"the body has more than {limit:,} bytes", limit=limit)

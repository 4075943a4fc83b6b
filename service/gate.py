"""The ASGI layer round the application: request ids, limits, departed clients, accounting.

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
from service.unpack import Unpacker

logger = logging.getLogger("service.access")

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

NO_SNIFFING = (b"x-content-type-options", b"nosniff")
"""Every answer is what it says it is, and nothing that a browser may guess."""

CALL = "%(method)s %(path)s %(status)d %(ms).1f ms %(bytes)d bytes %(request_id)s"

METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD", "OPTIONS"})

CLIENT_LEFT = 499
"""Status under which a call is counted whose client left before the answer."""


class BodyLimits(NamedTuple):
    """What bodies may be: bytes of one, bytes of all held, seconds to arrive, calls at once."""

    max_bytes: int
    max_bytes_held: int
    timeout_s: float
    max_calls: int


class Gate:
    """The outermost layer."""

    def __init__(self, app: ASGIApp, *, limits: BodyLimits, metrics: Metrics) -> None:
        """Wrap an application."""
        self._app = app
        self._limits = limits
        self._metrics = metrics
        self._bytes_held = 0
        self._num_calls = 0

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

    def enter(self) -> None:
        """Count a call that has a body.

        Raises:
            Overloaded: if too many are under way already.
        """
        self._num_calls += 1
        if self._num_calls > self._limits.max_calls:
            limit = self._limits.max_calls
            raise Overloaded(f"more than {limit} calls are under way", limit=limit)

    def leave(self) -> None:
        """Count the end of a call that had entered."""
        self._num_calls -= 1

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
            call = {
                "method": scope["method"] if scope["method"] in METHODS else "other",
                "path": path,
                "status": status,
                "ms": round(1e3 * seconds, 1),
                "bytes": passage.num_bytes,
                "request_id": passage.request_id,
            }
            logger.info(CALL, call, extra={"call": call})


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
        self.request_id = given if REQUEST_ID.fullmatch(given) else new_request_id()
        self._declared = headers.get("content-length", "").lstrip("0")
        self._encoding = headers.get("content-encoding", "identity").lower()
        self._unpacker: Unpacker | None = None
        self._has_entered = False
        self._is_whole = False
        self._is_answered = False
        self._num_held = 0
        self._num_unpacked = 0
        self.num_bytes = 0
        self.status = 500
        self.has_client_left = False

    async def receive(self) -> Message:
        """Receive a message, its body unpacked, counting bytes and seconds."""
        if not self._has_entered:
            self._has_entered = True
            self._gate.enter()
        if self._encoding == "identity":
            return await self._receive_wire()
        return await self._receive_unpacked()

    async def send(self, message: Message) -> None:
        """Send a message, with the request id."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self.request_id.encode()),
                NO_SNIFFING,
            ]
        elif not message.get("more_body", False):
            self._is_answered = True
        await self._send(message)

    def hold(self, num_bytes: int) -> None:
        """Account for bytes that this call holds until its end.

        Raises:
            Overloaded: if all calls together hold too many.
        """
        self._num_held += num_bytes
        self._gate.hold(num_bytes)

    def close(self) -> None:
        """Let go of what the call held."""
        self._gate.hold(-self._num_held)
        if self._has_entered:
            self._gate.leave()
        if self._watcher is not None:
            self._watcher.cancel()

    async def _receive_wire(self) -> Message:
        """Receive what comes over the wire."""
        limits = self._gate.limits
        # Python reads no number of thousands of digits; any of 19 is too large.
        if self._declared.isdigit() and int(self._declared[:19]) > limits.max_bytes:
            raise _body_too_large(limits.max_bytes)
        try:
            async with asyncio.timeout_at(self._deadline):
                message = await self._receive()
        except TimeoutError as error:
            raise RequestTimeout(f"the body took over {limits.timeout_s:g} s") from error
        if message["type"] != "http.request":
            self.has_client_left = not self._is_answered
            return message
        num_bytes = len(message.get("body", b""))
        self.num_bytes += num_bytes
        self.hold(num_bytes)
        if self.num_bytes > limits.max_bytes:
            raise _body_too_large(limits.max_bytes)
        if not message.get("more_body", False):
            self._is_whole = True
            self._watch()
        return message

    async def _receive_unpacked(self) -> Message:
        """Receive the next piece of a compressed body; unpacked bytes count as well."""
        if self._unpacker is None:
            self._unpacker = Unpacker(self._encoding)
        await asyncio.sleep(0)  # a large body of many pieces must not hold up the others
        while not (piece := self._unpacker.take()):
            if self._is_whole:
                self._unpacker.finish()
                break
            message = await self._receive_wire()
            if message["type"] != "http.request":
                return message
            self._unpacker.feed(message.get("body", b""))
        self.hold(len(piece))
        self._num_unpacked += len(piece)
        if self._num_unpacked > self._gate.limits.max_bytes:
            raise _body_too_large(self._gate.limits.max_bytes)
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    def _watch(self) -> None:
        """Cancel the call when its client leaves: from here on nothing else is received."""
        caller = asyncio.current_task()

        async def watch() -> None:
            message = await self._receive()
            if message["type"] == "http.disconnect" and caller is not None:
                self.has_client_left = True
                caller.cancel()

        self._watcher = asyncio.get_running_loop().create_task(watch())


def new_request_id() -> str:
    """Make a request id."""
    return f"{random.getrandbits(128):032x}"


def _body_too_large(limit: int) -> BodyTooLarge:
    """Say how large a body may be."""
    return BodyTooLarge(f"the body has more than {limit:,} bytes", limit=limit)

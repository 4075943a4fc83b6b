"""One HTTP connection: what uvicorn leaves open to clients that are slow, endless or broken.

Uvicorn waits for ever for the head of a request, for a client to take its answer, and for the rest
of a body that was refused; it takes heads of any size and any number of connections, and says what
is wrong in plain text. Here each of these has a bound, and every refusal our shape.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from service.encoding import to_json
from service.errors import (
    HeadTooLarge,
    InvalidHttp,
    RequestTimeout,
    ServiceError,
    TooManyConnections,
)
from service.metrics import Metrics
from service.passage import new_request_id

LINGER_S = 5.0
"""How long the rest of a refused body is read and dropped, so that its client sees the refusal."""


UPGRADE = re.compile(rb"\nupgrade(?=[ \t]*:)", re.IGNORECASE)
"""A header that asks for another protocol, as Java's client does in each first call."""

HOST = re.compile(rb"[\w.~!$&'()*+,;=%:\[\]-]*", re.ASCII)
"""What a host and a port may consist of (RFC 3986, 3.2.2)."""


class WireLimits(NamedTuple):
    """What a connection may be."""

    max_connections: int
    max_header_bytes: int
    header_timeout_s: float
    send_timeout_s: float


class Protocol(HttpToolsProtocol):
    """Uvicorn's protocol on httptools, with bounds."""

    def __init__(
        self,
        limits: WireLimits,
        metrics: Metrics,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Serve one connection; what follows the first two arguments is uvicorn's."""
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._metrics = metrics
        self._num_head_bytes = 0
        self._num_fed_bytes = 0
        self._head_clock, self._send_clock, self._linger_clock = _Clock(), _Clock(), _Clock()
        self._refusal: ServiceError | None = None
        self._calls: list[RequestResponseCycle] = []

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        """Admit a connection, and wait for its first request."""
        super().connection_made(transport)
        if len(self.connections) > self._limits.max_connections:
            self._refuse(TooManyConnections("too many connections are open"))
            return
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Take bytes; those of a head are counted, and those behind a refused one dropped."""
        if self._refusal is not None or self.transport.is_closing():
            return
        self._num_fed_bytes = len(data)
        if self._head_clock.runs:
            self._num_head_bytes += len(data)
        elif self._is_idle() and not self._linger_clock.runs:
            self._await_head()
        if self._head_clock.runs and UPGRADE.search(data, 0, _end_of_head(data)):
            data = _without_upgrade(data)
        super().data_received(data)
        is_in_head = self._head_clock.runs
        if is_in_head and self._num_head_bytes > self._limits.max_header_bytes:
            self._refuse(self._head_too_large())

    def on_message_begin(self) -> None:
        """Count the bytes of a head from here."""
        super().on_message_begin()
        if not self._head_clock.runs:
            self._await_head()
        self._num_head_bytes = self._num_fed_bytes

    def on_headers_complete(self) -> None:
        """Measure the head that has come."""
        self._head_clock.stop()
        num_bytes = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if num_bytes > self._limits.max_header_bytes:
            self._refusal = self._head_too_large()
        elif not self._has_one_host():
            self._refusal = InvalidHttp("expected one Host header, of a host and perhaps a port")
        if self._refusal is not None:
            raise ValueError("refused")  # ends the parser; uvicorn asks for a 400 then
        super().on_headers_complete()
        self._calls = [*self._calls_under_way(), self.cycle]

    def on_message_complete(self) -> None:
        """Note that nothing of the body is missing."""
        self._linger_clock.stop()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Give up on the rest of a body that was answered before its end."""
        super().on_response_complete()
        if self._refusal is not None:
            self._refuse_in_turn(self._refusal)
        elif self._is_idle() and self.cycle.more_body and not self.transport.is_closing():
            self._linger_clock.start(self.loop, LINGER_S, self.transport.close)

    def pause_writing(self) -> None:
        """Watch a client that does not take its answer as fast as it comes."""
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        """Let go of a client that has caught up."""
        self._send_clock.stop()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks, and tell every call: uvicorn tells only the one that came last."""
        self._head_clock.stop()
        self._linger_clock.stop()
        for call in self._calls_under_way():
            call.disconnected = True
            call.message_event.set()
        super().connection_lost(exc)
        self._send_clock.stop()

    def send_400_response(self, msg: str) -> None:
        """Say that what came is no HTTP, in our shape instead of uvicorn's words."""
        self._refuse(self._refusal or InvalidHttp("not a readable HTTP request"))

    def _has_one_host(self) -> bool:
        """Tell whether everybody on the way reads the same host (RFC 9112, 3.2)."""
        hosts = [value for name, value in self.headers if name == b"host"]
        if not hosts:
            return bool(self.parser.get_http_version() == "1.0")
        return len(hosts) == 1 and HOST.fullmatch(hosts[0]) is not None

    def _calls_under_way(self) -> list[RequestResponseCycle]:
        """Give the calls that were not answered yet: one runs, those behind it wait."""
        return [call for call in self._calls if not call.response_complete]

    def _is_idle(self) -> bool:
        """Tell whether no call is under way."""
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        """Start the clock for a head."""
        self._num_head_bytes = self._num_fed_bytes
        seconds = self._limits.header_timeout_s
        self._head_clock.start(self.loop, seconds, self._miss_head)

    def _miss_head(self) -> None:
        """End a connection whose head did not come; one that sent nothing needs no answer."""
        if not self._is_idle():  # the head of a next call: an answer of the first must come before
            self._await_head()
        elif self._num_head_bytes:
            seconds = self._limits.header_timeout_s
            self._refuse(RequestTimeout(f"the head took over {seconds:g} s"))
        else:
            self.transport.close()

    def _watch_sending(self) -> None:
        """Look again later, and hang up if not a byte was taken until then."""
        waiting = self.transport.get_write_buffer_size()

        def look() -> None:
            if self.transport.get_write_buffer_size() >= waiting:
                self.transport.abort()
            else:
                self._watch_sending()

        self._send_clock.start(self.loop, self._limits.send_timeout_s, look)

    def _head_too_large(self) -> HeadTooLarge:
        """Say how large a head may be."""
        limit = self._limits.max_header_bytes
        return HeadTooLarge(f"the request's head has more than {limit:,} bytes", limit=limit)

    def _refuse(self, error: ServiceError) -> None:
        """Answer a refusal without the application, and end the connection."""
        self._head_clock.stop()
        self._refusal = error
        self._metrics.refusals.labels(error.code).inc()
        self._refuse_in_turn(error)

    def _refuse_in_turn(self, error: ServiceError) -> None:
        """Answer a refusal when the calls that came before have their answers."""
        calls = self._calls_under_way()
        is_of_body = bool(calls) and calls[-1].more_body
        if len(calls) > is_of_body or self.transport.is_closing():
            return
        if not (is_of_body and calls[-1].response_started):
            self.transport.write(_write(error))
        self.transport.close()


def _end_of_head(data: bytes) -> int:
    """Find where the body begins, or where the data end."""
    end = data.find(b"\r\n\r\n")
    return len(data) if end < 0 else end


def _without_upgrade(data: bytes) -> bytes:
    """Rename `Upgrade` in the head of a request: ignored, as a server may (RFC 9110, 7.8).

    The parser would stop behind such a head, and lose the body.
    """
    head, blank, rest = data.partition(b"\r\n\r\n")
    return UPGRADE.sub(b"\nx-no-upgrade", head) + blank + rest


def _write(error: ServiceError) -> bytes:
    """Write a refusal as an HTTP response."""
    request_id = new_request_id()
    body = to_json({"error": {**error.to_dict(), "request_id": request_id}})
    retry = "" if error.retry_after_s is None else f"retry-after: {error.retry_after_s}\r\n"
    head = (
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n{retry}"
        f"x-request-id: {request_id}\r\nconnection: close\r\n\r\n"
    )
    return STATUS_LINE[error.status] + head.encode() + body


class _Clock:
    """Calls back once, unless it is stopped before."""

    def __init__(self) -> None:
        self._timer: asyncio.TimerHandle | None = None

    @property
    def runs(self) -> bool:
        """Whether it was started and neither stopped nor has called back."""
        return self._timer is not None

    def start(
        self, loop: asyncio.AbstractEventLoop, seconds: float, call: Callable[[], None]
    ) -> None:
        """Call back after so many seconds."""
        self.stop()
        self._timer = loop.call_later(seconds, self._ring, call)

    def stop(self) -> None:
        """Do not call back."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _ring(self, call: Callable[[], None]) -> None:
        """Call back."""
        self._timer = None
        call()

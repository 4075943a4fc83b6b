"""One HTTP connection: what uvicorn leaves open to clients that are slow, endless or broken.

Uvicorn waits for ever for the head of a request, for a client to take its answer, and for the rest
of a body that was refused; it takes heads of any size and any number of connections, keeps all
requests that come in a row, takes what follows a chunked body for headers, and says what is wrong
in plain text. Here each of these has a bound, and every refusal our shape. Requests are read one at
a time: the next when the one before has its answer.
"""

import asyncio
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from httptools import HttpParserError, HttpParserUpgrade
from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from service.encoding import to_json
from service.errors import (
    HeadTooLarge,
    InvalidHttp,
    RequestTimeout,
    ServiceError,
    TooManyConnections,
)
from service.framing import Framing
from service.metrics import Metrics
from service.passage import new_request_id

LINGER_S = 5.0
"""How long the rest of a refused body is read and dropped, so that its client sees the refusal."""

MAX_WAITING_BYTES = 16_384
"""Bytes of further requests that wait for the answer of the one before; then nothing is read."""

MAX_REFUSED = 100
"""Connections over the limit that are told so at once; more are hung up on without a word."""

UPGRADE = re.compile(rb"^upgrade(?=[ \t]*:)", re.IGNORECASE | re.MULTILINE)
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
    """Uvicorn's protocol on httptools, with bounds, and one request at a time."""

    def __init__(
        self,
        limits: WireLimits,
        metrics: Metrics,
        refused: set["Protocol"],
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        """Serve one connection.

        Args:
            limits: What a connection may be.
            metrics: Where refusals are counted.
            refused: Connections over the limit that are being told so; shared by all.
            config: Uvicorn's, as all that follows.
            server_state: See `config`.
            app_state: See `config`.
        """
        super().__init__(config, server_state, app_state, _loop)
        self._limits = limits
        self._metrics = metrics
        self._refused = refused
        self._framing = Framing()
        self._waiting = b""
        self._head_clock, self._send_clock, self._linger_clock = _Clock(), _Clock(), _Clock()
        self._refusal: ServiceError | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        """Admit a connection, and wait for its first request."""
        super().connection_made(transport)
        if len(self.connections) <= self._limits.max_connections:
            self._await_head()
            return
        self.connections.discard(self)
        if len(self._refused) >= MAX_REFUSED:
            transport.close()
            return
        self._refused.add(self)
        self._refuse(TooManyConnections("too many connections are open"))

    def data_received(self, data: bytes) -> None:
        """Take bytes; those behind a refused head are dropped."""
        if self._refusal is not None or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self._waiting = self._waiting + data if self._waiting else data
        self._advance()

    def on_headers_complete(self) -> None:
        """Look at the head that has come, and find out how its body ends."""
        self._head_clock.stop()
        if not self._has_one_host():
            self._refusal = InvalidHttp("expected one Host header, of a host and perhaps a port")
            raise ValueError("refused")  # ends the parser
        super().on_headers_complete()
        fields = dict(self.headers)  # the parser has seen to it that no length is given twice
        is_chunked = b"transfer-encoding" in fields
        length = fields.get(b"content-length", b"").lstrip(b"0") or b"0"
        self._framing.begin_body(None if is_chunked else int(length))

    def on_message_complete(self) -> None:
        """Wait for the next head; one whose answer went before its end is over now."""
        self._framing.begin_head()
        self._linger_clock.stop()
        super().on_message_complete()
        if self._is_idle() and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def on_response_complete(self) -> None:
        """Turn to the next request, or give up on the rest of a body that was answered before."""
        super().on_response_complete()
        self._watch_sending()
        if self.transport.is_closing():
            return
        if self._framing.is_in_head:
            self._advance()
        else:
            self._linger_clock.start(self.loop, LINGER_S, self.transport.close)

    def pause_writing(self) -> None:
        """Watch a client that does not take its answer as fast as it comes."""
        super().pause_writing()
        self._watch_sending()

    def resume_writing(self) -> None:
        """Give a client that has taken most of its answer its time for the rest."""
        self._watch_sending()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop all clocks."""
        for clock in (self._head_clock, self._linger_clock, self._send_clock):
            clock.stop()
        self._refused.discard(self)
        self._waiting = b""
        super().connection_lost(exc)

    def _advance(self) -> None:
        """Give the parser what has come, up to the end of a request that has no answer yet."""
        if self._waiting and self._framing.is_in_head and self._is_idle():
            self._unset_keepalive_if_required()
            if not self._head_clock.runs:
                self._await_head()
        while self._waiting and not self._must_wait():
            if not self._take_piece():
                break
        if len(self._waiting) > MAX_WAITING_BYTES and self._must_wait():
            self.flow.pause_reading()

    def _take_piece(self) -> bool:
        """Give the parser the next piece; False if more must come first, or all is refused."""
        try:
            piece = self._framing.cut(self._waiting)
        except ValueError as error:
            self._refuse(InvalidHttp(str(error)))
            return False
        num_unfinished = 0 if piece else len(self._waiting)
        if self._framing.num_line_bytes + num_unfinished > self._limits.max_header_bytes:
            self._refuse(self._head_too_large())
            return False
        if piece is None:
            return False
        taken, self._waiting = self._waiting[piece.start : piece.end], self._waiting[piece.end :]
        self._parse(taken)
        return True

    def _must_wait(self) -> bool:
        """Tell whether what has come is no longer, or not yet, for the parser."""
        is_over = self._refusal is not None or self.transport.is_closing()
        return is_over or (self._framing.is_in_head and not self._is_idle())

    def _parse(self, data: bytes) -> None:
        """Give bytes to the parser."""
        if self._framing.is_in_head:
            data = UPGRADE.sub(b"x-no-upgrade", data)  # ignored, as it may be (RFC 9110, 7.8)
        try:
            self.parser.feed_data(data)
        except HttpParserUpgrade:  # CONNECT, which the application refuses
            self._framing.begin_head()
        except HttpParserError:
            self._refuse(self._refusal or InvalidHttp("not a readable HTTP request"))

    def _has_one_host(self) -> bool:
        """Tell whether everybody on the way reads the same host (RFC 9112, 3.2)."""
        hosts = [value for name, value in self.headers if name == b"host"]
        if not hosts:
            return bool(self.parser.get_http_version() == "1.0")
        return len(hosts) == 1 and HOST.fullmatch(hosts[0]) is not None

    def _is_idle(self) -> bool:
        """Tell whether no call is under way."""
        return self.cycle is None or self.cycle.response_complete

    def _await_head(self) -> None:
        """Start the clock for a head."""
        self._head_clock.start(self.loop, self._limits.header_timeout_s, self._miss_head)

    def _miss_head(self) -> None:
        """End a connection whose head did not come; one that sent nothing needs no answer."""
        if self._framing.num_line_bytes or self._waiting:
            seconds = self._limits.header_timeout_s
            self._refuse(RequestTimeout(f"the head took over {seconds:g} s"))
        else:
            self.transport.close()

    def _watch_sending(self) -> None:
        """Look again later, and hang up if not a byte was taken until then."""
        waiting = self.transport.get_write_buffer_size()
        if not waiting:
            self._send_clock.stop()
            return

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
        """Answer a refusal without the application, and end the connection.

        A call whose body is at fault gets it in place of its answer, unless that has begun.
        """
        self._head_clock.stop()
        self._refusal = error
        self._waiting = b""
        self._metrics.refusals.labels(error.code).inc()
        is_of_body = not self._framing.is_in_head and self.cycle is not None
        if is_of_body and not self.cycle.response_complete:
            self.cycle.disconnected = True  # so that nothing more is written of its answer
            self.cycle.message_event.set()
        if not (is_of_body and self.cycle.response_started):
            self.transport.write(_write(error))
        self._hang_up()

    def _hang_up(self) -> None:
        """Close, once the client has had time to read: what it still sends is read and dropped."""
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        self._watch_sending()
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self._linger_clock.start(self.loop, LINGER_S, self.transport.close)
        else:
            self.transport.close()


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

"""One call on its way through the gate: its body comes in, its answer goes out, both with bounds.

A body is counted while it arrives. An answer of many numbers is announced before they are computed
and counts until the client has taken it: else slow clients, together, could fill the memory.
"""

import asyncio
import random
import re
from typing import NamedTuple

from starlette.datastructures import Headers
from starlette.types import Message, Receive, Scope, Send

from service.errors import AnswerTooLarge, BodyTooLarge, Overloaded, RequestTimeout
from service.unpack import Unpacker

REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")

NO_SNIFFING = (b"x-content-type-options", b"nosniff")
"""Every answer is what it says it is, and nothing that a browser may guess."""

BYTES_PER_NUMBER = 16
"""What a number of an answer takes: as float32, and written in digits."""

FREE_NUMBERS = 100_000
"""Answers of so few numbers are not counted: dozens of vectors, and pictures."""

PIECE_BYTES = 1 << 18
"""An answer is sent in pieces of this size, the next when its client has taken the last."""


class Limits(NamedTuple):
    """What calls may take.

    Attributes:
        max_bytes: Of one body.
        max_bytes_held: Of all bodies under way.
        timeout_s: Seconds for a body to arrive.
        max_calls: Calls with a body under way.
        max_answer_numbers: Numbers in one answer.
        max_answers_bytes: Of all large answers that are made or sent.
    """

    max_bytes: int
    max_bytes_held: int
    timeout_s: float
    max_calls: int
    max_answer_numbers: int
    max_answers_bytes: int


class Held:
    """What all calls under way hold together."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.num_calls = 0
        self.body_bytes = 0
        self.answer_bytes = 0

    def add_call(self) -> None:
        """Count a call that has a body.

        Raises:
            Overloaded: if too many are under way already.
        """
        self.num_calls += 1
        limit = self.limits.max_calls
        if self.num_calls > limit:
            raise Overloaded(f"more than {limit} calls are under way", limit=limit)

    def add_body(self, num_bytes: int) -> None:
        """Account for bytes of a body.

        Raises:
            Overloaded: if all bodies together become too large.
        """
        self.body_bytes += num_bytes
        limit = self.limits.max_bytes_held
        if self.body_bytes > limit:
            raise Overloaded("too many bytes are on their way", limit=limit)

    def add_answer(self, num_bytes: int) -> None:
        """Account for the memory of an answer.

        Raises:
            Overloaded: if all answers together become too large; it does not count then.
        """
        limit = self.limits.max_answers_bytes
        if self.answer_bytes + num_bytes > limit:
            raise Overloaded("too many large answers are on their way", limit=limit)
        self.answer_bytes += num_bytes


class Passage:
    """One call on its way through the gate."""

    def __init__(self, held: Held, scope: Scope, receive: Receive, send: Send) -> None:
        self._held = held
        self._receive = receive
        self._send = send
        self._watcher: asyncio.Task[None] | None = None
        self._deadline = asyncio.get_running_loop().time() + held.limits.timeout_s
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        self.request_id = given if REQUEST_ID.fullmatch(given) else new_request_id()
        self._declared = headers.get("content-length", "").lstrip("0")
        self._encoding = headers.get("content-encoding", "identity").lower()
        self._unpacker: Unpacker | None = None
        self._has_entered = False
        self._is_whole = False
        self._is_answered = False
        self._body_bytes = 0
        self._answer_bytes = 0
        self._rest = b""
        self._num_unpacked = 0
        self.num_bytes = 0
        self.status = 500
        self.has_client_left = False

    async def receive(self) -> Message:
        """Receive a message, its body unpacked, counting bytes and seconds."""
        if not self._has_entered:
            self._has_entered = True
            self._held.add_call()
        if self._encoding == "identity":
            return await self._receive_wire()
        return await self._receive_unpacked()

    def expect(self, num_numbers: int) -> None:
        """Announce an answer of so many numbers, before they are computed.

        Raises:
            AnswerTooLarge: if one answer may not have so many.
            Overloaded: if there is no room for it beside those on their way.
        """
        limit = self._held.limits.max_answer_numbers
        if num_numbers > limit:
            raise AnswerTooLarge(
                f"the answer would have {num_numbers:,} numbers; at most {limit:,} are given",
                limit=limit,
            )
        if num_numbers > FREE_NUMBERS:
            self._held.add_answer(BYTES_PER_NUMBER * num_numbers)
            self._answer_bytes += BYTES_PER_NUMBER * num_numbers

    async def send(self, message: Message) -> None:
        """Send a message, with the request id; of a large answer only the beginning."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [
                *message.get("headers", ()),
                (b"x-request-id", self.request_id.encode()),
                NO_SNIFFING,
            ]
        elif not message.get("more_body", False):
            body = message.get("body", b"")
            self._rest = body[PIECE_BYTES:]
            message = {**message, "body": body[:PIECE_BYTES], "more_body": bool(self._rest)}
            self._is_answered = not self._rest
        await self._send(message)

    async def send_rest(self) -> None:
        """Send what `send` left, as fast as the client takes it; the call itself is over."""
        self._leave()
        while self._rest:
            piece, self._rest = self._rest[:PIECE_BYTES], self._rest[PIECE_BYTES:]
            self._is_answered = not self._rest
            more = bool(self._rest)
            await self._send({"type": "http.response.body", "body": piece, "more_body": more})

    def close(self) -> None:
        """Let go of all that the call held."""
        self._leave()
        self._held.answer_bytes -= self._answer_bytes
        if self._watcher is not None:
            self._watcher.cancel()

    def _leave(self) -> None:
        """Let go of the body, and make room for another call."""
        self._held.body_bytes -= self._body_bytes
        self._held.num_calls -= self._has_entered
        self._body_bytes, self._has_entered = 0, False

    def _hold(self, num_bytes: int) -> None:
        """Account for bytes of the body.

        Raises:
            Overloaded: if all calls together hold too many.
        """
        self._body_bytes += num_bytes
        self._held.add_body(num_bytes)

    async def _receive_wire(self) -> Message:
        """Receive what comes over the wire."""
        limits = self._held.limits
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
        self._hold(num_bytes)
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
        self._hold(len(piece))
        self._num_unpacked += len(piece)
        if self._num_unpacked > self._held.limits.max_bytes:
            raise _body_too_large(self._held.limits.max_bytes)
        return {"type": "http.request", "body": piece, "more_body": bool(piece)}

    def _watch(self) -> None:
        """Cancel the call when its client leaves: from here on nothing else is received."""
        caller = asyncio.current_task()

        async def watch() -> None:
            message = await self._receive()
            is_gone = message["type"] == "http.disconnect" and not self._is_answered
            if is_gone and caller is not None:
                self.has_client_left = True
                caller.cancel()

        self._watcher = asyncio.get_running_loop().create_task(watch())


def new_request_id() -> str:
    """Make a request id."""
    return f"{random.getrandbits(128):032x}"


def _body_too_large(limit: int) -> BodyTooLarge:
    """Say how large a body may be."""
    return BodyTooLarge(f"the body has more than {limit:,} bytes", limit=limit)

"""Where the messages of an HTTP/1.1 connection begin and end, so that they are read one by one.

A parser that is given all that has come starts every request in it, however many. Here the stream
is cut into pieces that end where a part of a message ends: whole lines of a head, a body, chunks.
The parser still judges all that it is given; lines behind a chunked body, which would become
headers, are left out (RFC 9110, 6.5.1).
"""

import re
from enum import Enum, auto
from typing import NamedTuple

BLANK_LINE = re.compile(rb"^\r?\n", re.MULTILINE)
"""The end of a head."""

REQUEST = re.compile(rb"[\r\n]*([A-Z]|\Z)")
"""How a request begins."""

CHUNK = re.compile(rb"([0-9a-fA-F]{1,15})[^\n]*\n")
"""The line before a chunk: its size, perhaps extensions."""

MAX_LINE_BYTES = 4096
"""Of the line before a chunk."""


class Piece(NamedTuple):
    """Bytes `start` to `end` are for the parser; those before `start` are for nobody."""

    start: int
    end: int


class _Part(Enum):
    """What of a message comes next."""

    HEAD = auto()
    BODY = auto()
    CHUNKS = auto()
    CHUNK_DATA = auto()
    TRAILERS = auto()


class Framing:
    """Follows one connection from message to message.

    Attributes:
        num_line_bytes: Bytes so far of the head, or of the lines behind a chunked body.
    """

    def __init__(self) -> None:
        self._part = _Part.HEAD
        self._left = 0
        self.num_line_bytes = 0

    @property
    def is_in_head(self) -> bool:
        """Whether a head comes next, or is under way."""
        return self._part is _Part.HEAD

    def begin_head(self) -> None:
        """Note that a message has ended."""
        self._part, self.num_line_bytes = _Part.HEAD, 0

    def begin_body(self, length: int | None) -> None:
        """Note that a head has ended; without a length its body comes in chunks."""
        self._part = _Part.CHUNKS if length is None else _Part.BODY
        self._left = length or 0

    def cut(self, data: bytes) -> Piece | None:
        """Find the next piece of what has come, None if more must come first.

        Args:
            data: What has come and was in no piece before.

        Raises:
            ValueError: if the line before a chunk is too long to be one.
        """
        match self._part:
            case _Part.HEAD:
                return self._cut_lines(data)
            case _Part.BODY:
                end = min(len(data), self._left)
                self._left -= end
                return Piece(0, end) if end else None
            case _Part.TRAILERS:
                return self._cut_trailers(data)
            case _:
                return self._cut_chunks(data)

    def _cut_lines(self, data: bytes) -> Piece | None:
        """Take a head to its end, or what is there of whole lines."""
        if not self.num_line_bytes and not REQUEST.match(data):
            return Piece(0, len(data))  # for the parser to say so: no line may ever end
        blank = BLANK_LINE.search(data)
        end = blank.end() if blank else data.rfind(b"\n") + 1
        self.num_line_bytes += end
        return Piece(0, end) if end else None

    def _cut_trailers(self, data: bytes) -> Piece | None:
        """Leave lines out; only the blank one that ends them is for the parser."""
        blank = BLANK_LINE.search(data)
        end = blank.end() if blank else data.rfind(b"\n") + 1
        self.num_line_bytes += end
        return Piece(blank.start() if blank else end, end) if end else None

    def _cut_chunks(self, data: bytes) -> Piece | None:
        """Take what is there of chunks, and the line that says that there are no more."""
        end = 0
        while end < len(data):
            if self._part is _Part.CHUNK_DATA:
                size = min(len(data) - end, self._left)
                end, self._left = end + size, self._left - size
                if not self._left:
                    self._part = _Part.CHUNKS
                continue
            line = CHUNK.match(data, end)
            if line is None:
                return self._cut_bad_line(data, end)
            end = line.end()
            size = int(line[1], 16)
            if size == 0:
                self._part, self.num_line_bytes = _Part.TRAILERS, 0
                break
            self._part, self._left = _Part.CHUNK_DATA, size + 2  # and the line break behind it
        return Piece(0, end) if end else None

    def _cut_bad_line(self, data: bytes, start: int) -> Piece | None:
        """Take what stands before a line that is not whole; one that is none is the parser's."""
        line_end = data.find(b"\n", start) + 1
        if line_end == 0 and len(data) - start > MAX_LINE_BYTES:
            raise ValueError(f"the line before a chunk has more than {MAX_LINE_BYTES} bytes")
        end = line_end or start
        return Piece(0, end) if end else None

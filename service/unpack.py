"""Compressed bodies, unpacked piece by piece while they arrive, so that a bomb is seen in time."""

import zlib

from service.errors import InvalidEncoding, UnsupportedMediaType

PIECE_BYTES = 1 << 18
"""What is unpacked at once: half a millisecond of the event loop."""


class Unpacker:
    """Takes a compressed body in pieces and gives it unpacked in pieces of bounded size."""

    def __init__(self, encoding: str) -> None:
        """Prepare for a value of `Content-Encoding`.

        Raises:
            UnsupportedMediaType: if it is neither gzip nor deflate.
        """
        if encoding not in ("gzip", "x-gzip", "deflate"):
            raise UnsupportedMediaType("of compressed bodies gzip and deflate are read")
        self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)  # both, told apart by their heads
        self._packed = b""

    def feed(self, packed: bytes) -> None:
        """Take a piece of the compressed body."""
        self._packed += packed

    def take(self) -> bytes:
        """Give the next piece, empty where more has to be fed first.

        Raises:
            InvalidEncoding: if the body is damaged or goes on after its end.
        """
        if self._inflate.eof:
            if self._packed or self._inflate.unused_data:
                raise InvalidEncoding("the compressed body goes on after its end")
            return b""
        try:
            piece = self._inflate.decompress(self._packed, PIECE_BYTES)
        except zlib.error as error:
            raise InvalidEncoding("the compressed body is damaged") from error
        self._packed = self._inflate.unconsumed_tail
        return piece

    def finish(self) -> None:
        """See that the body was whole.

        Raises:
            InvalidEncoding: if it was not.
        """
        if not self._inflate.eof:
            raise InvalidEncoding("the compressed body is cut short")

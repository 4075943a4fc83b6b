"""How an image file is put together, looked at before a decoder does.

Pillow walks the chunks of a PNG and the segments of a JPEG one by one in Python, and libjpeg goes
over every coefficient again for each scan of a progressive file: twenty megabytes of empty pieces
cost it eight seconds, a few hundred kilobytes of scans hours. Here the same pieces are walked with
a bound, in microseconds for a real picture, and a file that ends too early is seen before memory is
taken for its pixels.
"""

import re

from service.errors import UndecodableImage

BYTES_PER_PIECE = 512
"""A file may have one chunk or segment for so many of its bytes, and `FREE_PIECES` more."""

FREE_PIECES = 1000

MAX_SCANS = 64
"""Of a progressive JPEG; encoders write about ten."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"

SCAN_END = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""Inside of a scan, a marker that is no stuffing and no restart."""

PROGRESSIVE = frozenset({0xC2, 0xC6, 0xCA, 0xCE})
STANDALONE = frozenset({0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE)})
"""JPEG markers after which Pillow looks for the next one at once, as if they had no length."""

START_OF_SCAN, END_OF_IMAGE, FILL = 0xDA, 0xD9, 0xFF


def check_container(data: bytes) -> None:
    """Refuse a file that is built to be expensive, or that ends in the middle of its pixels.

    Other formats than PNG and JPEG are read by their libraries as a whole and pass.

    Raises:
        UndecodableImage: if it has too many chunks, segments or scans, or is cut short.
    """
    if data.startswith(PNG_SIGNATURE):
        _check_png(data)
    elif data.startswith(b"\xff\xd8"):
        _check_jpeg(data)


def _check_png(data: bytes) -> None:
    """Walk the chunks."""
    position, num_pieces = len(PNG_SIGNATURE), 0
    while position + 8 <= len(data):
        length, kind = data[position : position + 4], data[position + 4 : position + 8]
        position += 12 + int.from_bytes(length, "big")
        num_pieces += 1
        _check_count(num_pieces, data)
        if kind == b"IDAT" and position > len(data):
            raise UndecodableImage("image is cut short")
        if kind == b"IEND":
            return


def _check_jpeg(data: bytes) -> None:
    """Walk the segments to the first scan, and on through the scans if they are many."""
    position, num_pieces, is_progressive = 2, 0, False
    while position + 4 <= len(data):
        num_pieces += 1
        _check_count(num_pieces, data)
        marker = data[position + 1] if data[position] == FILL else FILL
        if marker in (FILL, 0):  # padding and junk are skipped byte by byte, there as here
            position += 1
            continue
        is_progressive |= marker in PROGRESSIVE
        if marker == START_OF_SCAN:
            if is_progressive:
                _check_scans(data, position)
            return
        position += 2 if marker in STANDALONE else 2 + _length(data, position)


def _check_scans(data: bytes, position: int) -> None:
    """Walk a progressive file from its first scan to its end."""
    num_scans, num_pieces = 0, 0
    while True:
        num_pieces += 1
        _check_count(num_pieces, data)
        if data[position + 1] == START_OF_SCAN:
            num_scans += 1
            if num_scans > MAX_SCANS:
                raise UndecodableImage(f"image has more than {MAX_SCANS} scans")
        # What follows a segment is the next one or the scan's data: the next marker in either case.
        found = SCAN_END.search(data, position + 2 + _length(data, position))
        if found is None:
            raise UndecodableImage("image is cut short")
        position = found.start()
        if data[position + 1] == END_OF_IMAGE:
            return


def _length(data: bytes, position: int) -> int:
    """Give the length that a segment states of itself, its two bytes of length included."""
    return int.from_bytes(data[position + 2 : position + 4], "big")


def _check_count(num_pieces: int, data: bytes) -> None:
    """Bound the pieces of a file by its size."""
    if num_pieces > FREE_PIECES + len(data) // BYTES_PER_PIECE:
        raise UndecodableImage("image has too many parts for its size")

"""Where messages end, whatever pieces they come in."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.framing import MAX_LINE_BYTES, Framing

HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n\r\n"
CHUNKED = b"4\r\nabcd\r\nA;name=value\r\n0123456789\r\n0\r\n"


def read(framing: Framing, stream: bytes) -> tuple[bytes, bytes]:
    """Cut as far as it goes: what the parser is given, and what is left."""
    given = b""
    while stream and (piece := framing.cut(stream)):
        given += stream[piece.start : piece.end]
        stream = stream[piece.end :]
    return given, stream


def test_a_head_ends_at_its_blank_line():
    framing = Framing()
    piece = framing.cut(b"\r\n" + HEAD + b"\r\nGET")
    assert piece == (0, 2)
    assert framing.cut(HEAD + b"\r\nGET") == (0, len(HEAD))
    assert framing.num_line_bytes == 2 + len(HEAD)


def test_of_a_head_under_way_whole_lines_are_given():
    framing = Framing()
    assert framing.cut(b"GET / HTTP/1.1\r\nHos") == (0, 16)
    assert framing.cut(b"Hos") is None
    assert framing.cut(b"Host: x\r\n\r") == (0, 9)
    assert framing.cut(b"\r\n") == (0, 2)


@pytest.mark.parametrize("sent", [b"\x16\x03\x01", b"\0" * 9, b"get"])
def test_what_is_no_request_is_the_parsers_at_once(sent):
    assert Framing().cut(sent) == (0, len(sent))


def test_a_body_ends_at_its_length():
    framing = Framing()
    framing.begin_body(5)
    assert framing.cut(b"abc") == (0, 3)
    assert framing.cut(b"deGET / HTTP/1.1\r\n") == (0, 2)


@given(st.data())
def test_chunks_end_before_their_trailers_however_they_come(data):
    stream = CHUNKED + b"Host: evil\r\nA: b\r\n\r\nGET /next"
    cuts = data.draw(st.lists(st.integers(0, len(stream)), max_size=8))
    framing = Framing()
    framing.begin_body(None)
    given_, left, is_over = b"", b"", False
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), len(stream)], strict=True):
        left += stream[start:end]
        while left and not is_over and (piece := framing.cut(left)):
            given_ += left[piece.start : piece.end]
            left = left[piece.end :]
            is_over = given_.endswith(b"0\r\n\r\n")
    assert given_ == CHUNKED + b"\r\n"
    assert left == b"GET /next"
    assert framing.num_line_bytes == len(b"Host: evil\r\nA: b\r\n\r\n")


def test_a_line_that_is_no_chunks_is_the_parsers():
    framing = Framing()
    framing.begin_body(None)
    assert read(framing, b"4\r\nabcd\r\nZZ\r\nabc") == (b"4\r\nabcd\r\nZZ\r\n", b"abc")


def test_a_chunks_line_without_end_is_refused():
    framing = Framing()
    framing.begin_body(None)
    assert framing.cut(b"5;" + b"x" * (MAX_LINE_BYTES - 2)) is None
    with pytest.raises(ValueError, match="more than 4096 bytes"):
        framing.cut(b"5;" + b"x" * MAX_LINE_BYTES)

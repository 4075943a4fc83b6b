import contextlib
import gzip
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.app import create_app
from service.errors import InvalidEncoding, UnsupportedMediaType
from service.unpack import PIECE_BYTES, Unpacker
from tests.service.calls import refused
from tests.service.known import A, good
from tests.service.server import serve

LIMIT = 20_000


def unpack(packed: bytes, encoding: str = "gzip", size: int = 100) -> bytes:
    """Feed a body in pieces, and put together what comes out."""
    unpacker, unpacked = Unpacker(encoding), b""
    for start in range(0, len(packed), size):
        unpacker.feed(packed[start : start + size])
        while piece := unpacker.take():
            assert len(piece) <= PIECE_BYTES
            unpacked += piece
    unpacker.finish()
    return unpacked


@given(st.binary(max_size=2000), st.integers(1, 500))
@settings(max_examples=50, deadline=None)
def test_what_was_packed_comes_out(data, size):
    assert unpack(gzip.compress(data), size=size) == data
    assert unpack(zlib.compress(data), "deflate", size) == data


def test_a_bomb_comes_out_in_pieces():
    assert unpack(gzip.compress(bytes(10 * PIECE_BYTES))) == bytes(10 * PIECE_BYTES)


@given(st.data())
@settings(max_examples=200, deadline=None)
def test_any_damage_is_refused_or_harmless(data):
    packed = bytearray(gzip.compress(b"a body of some length" * 9))
    packed[data.draw(st.integers(0, len(packed) - 1))] ^= data.draw(st.integers(1, 255))
    with contextlib.suppress(InvalidEncoding):
        unpack(bytes(packed[: data.draw(st.integers(0, len(packed)))]))


@pytest.mark.parametrize("tail", [b"x", gzip.compress(b"another")])
def test_what_follows_the_end_is_refused(tail):
    with pytest.raises(InvalidEncoding, match="goes on"):
        unpack(gzip.compress(b"abc") + tail, size=1000)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip", ""])
def test_other_encodings_are_unsupported(encoding):
    with pytest.raises(UnsupportedMediaType):
        Unpacker(encoding)


@pytest.fixture(scope="module")
def strict(settings):
    with serve(create_app(settings.model_copy(update={"max_body_bytes": LIMIT}))) as client:
        yield client


def post(client, packed: bytes, encoding="gzip"):
    headers = {"content-type": "image/png", "content-encoding": encoding}
    return client.post("/embed", content=packed, headers=headers)


def test_a_compressed_body_is_answered_as_the_plain_one(strict):
    plain = strict.post("/embed", content=A, headers={"content-type": "image/png"})
    assert good(post(strict, gzip.compress(A))) == good(plain)
    assert good(post(strict, zlib.compress(A), "deflate")) == good(plain)


def test_unpacked_bytes_are_counted(strict):
    fitting = A + bytes(LIMIT - len(A))
    assert post(strict, gzip.compress(fitting)).status_code == 200
    refused(post(strict, gzip.compress(fitting + b"\0")), 413, "body_too_large")
    refused(post(strict, gzip.compress(bytes(10_000_000))), 413, "body_too_large")


def test_bodies_that_are_not_what_they_say_are_refused(strict):
    refused(post(strict, A), 400, "invalid_encoding")
    refused(post(strict, gzip.compress(A)[:-1]), 400, "invalid_encoding")
    refused(post(strict, b""), 400, "invalid_encoding")
    refused(post(strict, A, "br"), 415, "unsupported_media_type")

"""What is fuzzed: functions of bytes that must give an answer or a refusal, and nothing else."""

import asyncio
import gzip
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image
from starlette.requests import Request

from service.errors import ServiceError
from service.images import FORMATS, ImageLimits, decode
from service.inputs import read_inputs
from service.protocols.tensors import read_call
from service.unpack import Unpacker
from tests.service.pictures import jpeg, png, scene, to_file
from tests.service.profiles import profile

SMALL = ImageLimits(max_pixels=300_000, max_decoded_bytes=2_000_000, formats=FORMATS)


class Target(NamedTuple):
    """A function of bytes, and good inputs to start from."""

    run: Callable[[bytes], None]
    seeds: list[bytes]


def decode_image(data: bytes) -> None:
    """Decode an image in any format that can be let in."""
    decoded = decode(data, SMALL, least_side=16)
    assert decoded.image.mode == "RGB"
    assert decoded.width * decoded.height <= SMALL.max_pixels
    assert np.asarray(decoded.image).dtype == np.uint8


def read_tensors(data: bytes) -> None:
    """Read a binary infer call; the first two bytes say how long its header claims to be."""
    length = str(int.from_bytes(data[:2], "little"))
    call = read_call(data[2:], length, 8)
    assert 1 <= len(call.images) <= 8
    assert sum(map(len, call.images)) <= len(data)


def read_form(data: bytes) -> None:
    """Read a multipart form."""
    _read(data, b"multipart/form-data; boundary=b")


def read_json(data: bytes) -> None:
    """Read a JSON body."""
    _read(data, b"application/json")


def unpack(data: bytes) -> None:
    """Unpack a compressed body, no more of it than a megabyte."""
    unpacker, size = Unpacker("gzip"), 0
    unpacker.feed(data)
    while size < 1_000_000 and (piece := unpacker.take()):
        size += len(piece)
    if size < 1_000_000:
        unpacker.finish()


def holds(target: Target, data: bytes) -> None:
    """Run a target; only a refusal that is the client's fault may come out of it."""
    refusal = None
    try:
        target.run(data)
    except ServiceError as error:
        refusal = error
    assert refusal is None or 400 <= refusal.status < 500
    assert refusal is None or len(refusal.message) < 400


def _read(body: bytes, kind: bytes) -> None:
    """Read a request with a body."""

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"content-type", kind)]
    scope = {"type": "http", "method": "POST", "query_string": b"", "headers": headers}
    inputs = asyncio.run(read_inputs(Request(scope, receive), max_images=4))
    assert 1 <= len(inputs.images) <= 4


def _images() -> list[bytes]:
    """Give small files of every format and kind."""
    image = scene(24, 16)
    grey16 = Image.fromarray(np.asarray(image.convert("L"), np.uint16) * 257)
    kinds = ["RGB", "L", "P", "RGBA", "LA", "1"]
    files = [png(image.convert(kind)) for kind in kinds]
    files += [to_file(image, kind) for kind in FORMATS]
    files += [to_file(image, "TIFF", compression=how) for how in ("tiff_lzw", "tiff_adobe_deflate")]
    files += [jpeg(image, progressive=True), jpeg(image.convert("CMYK")), png(grey16)]
    files += [jpeg(image, icc_profile=profile("Adobe RGB")), to_file(image, "WEBP", lossless=True)]
    others = [scene(24, 16, seed) for seed in (1, 2)]
    files += [
        to_file(image, k, save_all=True, append_images=others) for k in ("PNG", "WEBP", "GIF")
    ]
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        *files,
        jpeg(image, exif=exif),
        to_file(image, "MPO", save_all=True, append_images=others),
    ]


def _tensors() -> list[bytes]:
    """Give binary infer calls of one and two elements."""
    calls = []
    for count in (1, 2):
        raw = (len(b"file").to_bytes(4, "little") + b"file") * count
        header = (
            b'{"id":"1","inputs":[{"name":"IMAGE","shape":[%d],"datatype":"BYTES","parameters":'
            b'{"binary_data_size":%d}}],"outputs":[{"name":"EMBEDDING"}]}' % (count, len(raw))
        )
        calls.append(len(header).to_bytes(2, "little") + header + raw)
    return calls


PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\nabc\r\n'
OPTION = b'--b\r\nContent-Disposition: form-data; name="fit"\r\n\r\npad\r\n'

TARGETS = {
    "image": Target(decode_image, _images()),
    "tensors": Target(read_tensors, _tensors()),
    "form": Target(read_form, [PART + b"--b--\r\n", PART + OPTION + PART + b"--b--\r\n"]),
    "json": Target(
        read_json,
        [
            b'{"images": [{"base64": "YWJj"}, {"data_uri": "data:image/png;base64,YWJj"}]}',
            b'{"images": [{"url": "http://example.org/a.png"}], "points": [[1, 2.5]]}',
        ],
    ),
    "gzip": Target(unpack, [gzip.compress(b"abc" * 99, mtime=0)]),
}

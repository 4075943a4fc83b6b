"""One picture in many files: the same vector, whatever a file does with it."""

import io

import numpy as np
import pytest
from PIL import Image

from service.app import create_app
from service.parity import PHOTOGRAPHS
from service.settings import DEFAULT_MODEL, Settings
from tests.service.calls import post_raw
from tests.service.pictures import to_file
from tests.service.profiles import in_space, profile
from tests.service.server import serve

SAME = 0.999


@pytest.fixture(scope="module")
def real():
    """The model that ships: a tiny one would forgive too much."""
    settings = Settings(model=DEFAULT_MODEL, engine="onnxruntime", device="cpu", threads=1)
    with serve(create_app(settings)) as client:
        yield client


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    photograph = Image.open(io.BytesIO(PHOTOGRAPHS[0].read_bytes()))
    return photograph.convert("RGB")


def vector(client, data: bytes) -> np.ndarray:
    response = post_raw(client, "/embed", data)
    assert response.status_code == 200, response.text
    return np.array(response.json()["embeddings"][0])


def turned(image: Image.Image, orientation: int) -> bytes:
    """Give the picture as a camera stores it that was held so."""
    back = {
        3: Image.Transpose.ROTATE_180,
        6: Image.Transpose.ROTATE_90,
        8: Image.Transpose.ROTATE_270,
    }
    exif = Image.Exif()
    exif[0x0112] = orientation
    return to_file(image.transpose(back[orientation]), "JPEG", quality=98, exif=exif)


def faded(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """Give the picture half transparent to the right, and what it looks like over white."""
    alpha = Image.linear_gradient("L").rotate(90).resize(image.size).point(lambda a: 128 + a // 2)
    seen = Image.composite(image, Image.new("RGB", image.size, "white"), alpha)
    image = image.copy()
    image.putalpha(alpha)
    return image, seen


def animated(image: Image.Image, kind: str) -> bytes:
    others = [image.rotate(90), image.rotate(180)]
    return to_file(image, kind, save_all=True, append_images=others, lossless=True)


IN_COLOUR = {
    "JPEG": lambda image: to_file(image, "JPEG", quality=98),
    "progressive JPEG": lambda image: to_file(image, "JPEG", quality=98, progressive=True),
    "WebP": lambda image: to_file(image, "WEBP", quality=98),
    "CMYK": lambda image: to_file(image.convert("CMYK"), "JPEG", quality=98),
    "opaque alpha": lambda image: to_file(image.convert("RGBA"), "PNG"),
    "upside down": lambda image: turned(image, 3),
    "turned left": lambda image: turned(image, 6),
    "turned right": lambda image: turned(image, 8),
    "animated PNG": lambda image: animated(image, "PNG"),
    "animated WebP": lambda image: animated(image, "WEBP"),
    "sRGB by name": lambda image: to_file(image, "PNG", icc_profile=profile("sRGB")),
    "Display P3": lambda image: to_file(
        in_space(image, "Display P3"), "JPEG", quality=98, icc_profile=profile("Display P3")
    ),
    "Adobe RGB": lambda image: to_file(
        in_space(image, "Adobe RGB"), "PNG", icc_profile=profile("Adobe RGB")
    ),
    "16-bit colour": lambda image: png_of_16_bits(np.asarray(image)),
}


def png_of_16_bits(values: np.ndarray) -> bytes:
    """Write a PNG of 16 bits a channel, which Pillow cannot."""
    import struct
    import zlib

    height, width, channels = values.shape
    rows = (values.astype(">u2") * 257).reshape(height, -1)
    raw = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    kind = {3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.parametrize("write", IN_COLOUR.values(), ids=IN_COLOUR)
def test_a_picture_has_the_vector_of_the_plain_file(real, picture, write):
    plain = vector(real, to_file(picture, "PNG"))
    assert vector(real, write(picture)) @ plain > SAME


def test_a_picture_of_a_palette_has_the_vector_of_its_colours(real, picture):
    of_few = picture.quantize(256)
    plain = vector(real, to_file(of_few.convert("RGB"), "PNG"))
    assert vector(real, to_file(of_few, "PNG")) @ plain > SAME


def test_a_grey_picture_has_the_vector_of_its_three_equal_channels(real, picture):
    grey = picture.convert("L")
    plain = vector(real, to_file(grey.convert("RGB"), "PNG"))
    sixteen = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    for data in (
        to_file(grey, "PNG"),
        to_file(grey, "JPEG", quality=98),
        to_file(sixteen, "PNG"),
        to_file(grey.convert("LA"), "PNG"),
    ):
        assert vector(real, data) @ plain > SAME


def test_a_transparent_picture_has_the_vector_of_what_is_seen_over_white(real, picture):
    image, seen = faded(picture)
    plain = vector(real, to_file(seen, "PNG"))
    for data in (to_file(image, "PNG"), to_file(image, "WEBP", lossless=True)):
        assert vector(real, data) @ plain > SAME
    assert vector(real, png_of_16_bits(np.asarray(image))) @ plain > SAME


def test_other_pictures_have_other_vectors(real, picture):
    others = [vector(real, path.read_bytes()) for path in PHOTOGRAPHS[1:]]
    plain = vector(real, to_file(picture, "PNG"))
    assert all(other @ plain < 0.99 for other in others)

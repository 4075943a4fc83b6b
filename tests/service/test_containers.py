import struct
import zlib

import pytest
from PIL import Image

from service.containers import BYTES_PER_PIECE, FREE_PIECES, MAX_SCANS, check_container
from service.errors import UndecodableImage
from tests.service.pictures import jpeg, png, scene, to_file


def chunk(kind: bytes, data: bytes = b"") -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG = png(scene())
JPEG = jpeg(scene())
PROGRESSIVE = jpeg(scene(), progressive=True)
NUM_CHUNKS = 3  # IHDR, IDAT, IEND
HEAD = 8 + 25  # signature and IHDR


def last_scan() -> bytes:
    """Give the last scan of the progressive picture, without the end of the image."""
    return PROGRESSIVE[PROGRESSIVE.rindex(b"\xff\xda") : -2]


@pytest.mark.parametrize(
    "data",
    [PNG, JPEG, PROGRESSIVE, to_file(scene(), "WEBP"), to_file(scene(), "GIF"), b"", b"x" * 99]
    + [to_file(scene(), "MPO", save_all=True, append_images=[scene(seed=1)])]
    + [png(scene().convert(mode)) for mode in ("P", "L", "RGBA", "1")]
    + [jpeg(scene(400, 300), progressive=True, exif=b"Exif\0\0\xff\xd9\xff\xda" * 9)],
)
def test_what_encoders_write_passes(data):
    check_container(data)


@pytest.mark.parametrize("kind", [b"abCd", b"IDAT", b"tEXt"])
@pytest.mark.parametrize("where", [HEAD, len(PNG) - 12])
def test_a_png_may_have_only_so_many_chunks(kind, where):
    def with_chunks(count):
        return PNG[:where] + chunk(kind) * count + PNG[where:]

    size = len(with_chunks(1000))
    fitting = 1000 - NUM_CHUNKS + size // BYTES_PER_PIECE
    while (
        FREE_PIECES + len(with_chunks(fitting + 1)) // BYTES_PER_PIECE >= fitting + 1 + NUM_CHUNKS
    ):
        fitting += 1
    check_container(with_chunks(fitting))
    with pytest.raises(UndecodableImage, match="too many parts"):
        check_container(with_chunks(fitting + 1))


@pytest.mark.parametrize(
    "piece",
    [b"\xff\xfe\0\2", b"\xff\xe9\0\2", b"\xff", b"\0", b"\xff\xd9", b"\xff\xf0", b"\xff\xd0"],
)
def test_a_jpeg_may_have_only_so_many_segments(piece):
    check_container(JPEG[:2] + piece * 500 + JPEG[2:])
    with pytest.raises(UndecodableImage, match="too many parts"):
        check_container(JPEG[:2] + piece * 3000 + JPEG[2:])


def test_a_progressive_jpeg_may_have_only_so_many_scans():
    has = PROGRESSIVE.count(b"\xff\xda")
    more = last_scan() * (MAX_SCANS - has)
    check_container(PROGRESSIVE[:-2] + more + b"\xff\xd9")
    with pytest.raises(UndecodableImage, match=f"more than {MAX_SCANS} scans"):
        check_container(PROGRESSIVE[:-2] + more + last_scan() + b"\xff\xd9")


def test_scans_are_not_hidden_by_an_end_inside_of_a_segment():
    comment = b"\xff\xfe" + struct.pack(">H", 4) + b"\xff\xd9"
    with pytest.raises(UndecodableImage, match="scans"):
        check_container(PROGRESSIVE[:-2] + (comment + last_scan()) * MAX_SCANS + b"\xff\xd9")


@pytest.mark.parametrize("data", [PNG, PROGRESSIVE])
def test_a_file_that_ends_in_its_pixels_is_refused_before_decoding(data):
    for length in range(len(data) // 2, len(data) - 60, 50):
        with pytest.raises(UndecodableImage, match="cut short"):
            check_container(data[:length])


def test_a_png_without_its_end_is_left_to_the_decoder():
    check_container(PNG[:-12])


def test_lengths_that_lie_end_the_walk():
    check_container(PNG[:HEAD] + struct.pack(">I", 0xFFFFFFFF) + b"abCd")
    check_container(JPEG[:2] + b"\xff\xe1\xff\xff" + JPEG[2:100])
    check_container(JPEG[:2] + b"\xff\xe1\0\0" + JPEG[2:])


def test_pictures_of_one_colour_pass():
    check_container(png(Image.new("RGB", (3000, 3000))))
    check_container(jpeg(Image.new("RGB", (3000, 3000)), progressive=True))

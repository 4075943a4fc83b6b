import io
import struct
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from service.errors import ImageTooLarge, UndecodableImage, UnsupportedImageFormat
from service.images import ImageLimits, decode
from tests.service.pictures import jpeg, png, scene, to_file

LIMITS = ImageLimits()

BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What a camera held so does to the picture; our own table must undo it."""


def pixels(data: bytes, limits: ImageLimits = LIMITS) -> np.ndarray:
    decoded = decode(data, limits)
    assert decoded.image.mode == "RGB"
    assert decoded.image.size == (decoded.width, decoded.height)
    return np.asarray(decoded.image)


def with_orientation(value: object) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = value
    return exif


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_lossless_files_decode_to_their_very_pixels(kind):
    image = scene(31, 17)
    np.testing.assert_array_equal(pixels(to_file(image, kind, lossless=True)), np.asarray(image))


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_jpeg_decodes_near_its_pixels(options):
    image = scene(64, 48)
    difference = pixels(jpeg(image, **options)).astype(int) - np.asarray(image)
    assert np.abs(difference).mean() < 4


def test_grey_becomes_three_equal_channels():
    grey = scene().convert("L")
    expected = np.stack([np.asarray(grey)] * 3, axis=-1)
    np.testing.assert_array_equal(pixels(png(grey)), expected)


def test_black_and_white_become_0_and_255():
    picture = Image.fromarray(np.eye(8, dtype=bool))
    assert picture.mode == "1"
    np.testing.assert_array_equal(pixels(png(picture))[..., 1], 255 * np.eye(8, dtype=np.uint8))


def test_16_bit_grey_is_scaled_not_clipped():
    values = np.array([[0, 128, 257, 32768, 64764, 65535]], np.uint16)
    grey = pixels(png(Image.fromarray(values)))[0, :, 0]
    assert grey.tolist() == [0, 0, 1, 128, 252, 255]  # value / 257, rounded


def test_palette_is_looked_up():
    paletted = scene().convert("P")
    np.testing.assert_array_equal(pixels(png(paletted)), np.asarray(paletted.convert("RGB")))


def test_cmyk_becomes_rgb():
    image = scene(64, 48)
    difference = pixels(jpeg(image.convert("CMYK"))).astype(int) - np.asarray(image)
    assert np.abs(difference).mean() < 4


def test_transparency_is_laid_over_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = [(10, 20, 30, 255), (10, 20, 30, 0), (0, 100, 200, 51)]
    got = pixels(png(Image.fromarray(rgba)))[0]
    assert got.tolist() == [[10, 20, 30], [255, 255, 255], [204, 224, 244]]  # 255 - 0.2 (255 - v)


def test_grey_with_alpha_is_laid_over_white():
    grey = Image.fromarray(np.array([[[7, 255], [7, 0]]], np.uint8), "LA")
    assert pixels(png(grey))[0].tolist() == [[7, 7, 7], [255, 255, 255]]


def test_a_transparent_colour_is_laid_over_white():
    picture = Image.fromarray(np.array([[[1, 2, 3], [4, 5, 6]]], np.uint8))
    got = pixels(png(picture, transparency=(1, 2, 3)))[0]
    assert got.tolist() == [[255, 255, 255], [4, 5, 6]]


def test_a_transparent_palette_entry_is_laid_over_white():
    picture = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    picture.putpalette([1, 2, 3, 4, 5, 6])
    got = pixels(png(picture, transparency=0))[0]
    assert got.tolist() == [[255, 255, 255], [4, 5, 6]]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_every_orientation_is_undone(orientation, kind):
    upright = scene(24, 16)
    stored = upright.transpose(BACK[orientation]) if orientation in BACK else upright
    data = to_file(stored, kind, lossless=True, exif=with_orientation(orientation))
    np.testing.assert_array_equal(pixels(data), np.asarray(upright))


@pytest.mark.parametrize("orientation", [1, 6])
def test_orientation_of_a_jpeg_shrunk_while_decoding_keeps_the_full_size(orientation):
    decoded = decode(
        jpeg(scene(320, 160), exif=with_orientation(orientation)), LIMITS, least_side=40
    )
    full = (320, 160) if orientation == 1 else (160, 320)
    assert (decoded.width, decoded.height) == full
    assert decoded.image.size == (full[0] // 4, full[1] // 4)


@pytest.mark.parametrize("orientation", [0, 9, 255])
def test_orientations_that_are_none_are_upright(orientation):
    image = scene(24, 16)
    data = png(image, exif=with_orientation(orientation))
    np.testing.assert_array_equal(pixels(data), np.asarray(image))


@pytest.mark.parametrize(
    "exif",
    [
        b"Exif\0\0",
        b"Exif\0\0MM\0*\0\0",
        b"Exif\0\0XM\0*\0\0\0\x08",
        b"Exif\0\0II*\0\x08\0\0\0\x01\0\x12\x01",
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_exif_is_ignored(kind, exif):
    assert pixels(to_file(scene(24, 16), kind, exif=exif)).shape == (16, 24, 3)


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_taken(kind):
    frames = [scene(24, 16, seed) for seed in range(3)]
    data = to_file(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    np.testing.assert_array_equal(pixels(data), np.asarray(frames[0]))


def test_of_a_multi_picture_jpeg_the_first_is_taken():
    frames = [scene(48, 32, seed) for seed in range(2)]
    data = to_file(frames[0], "MPO", save_all=True, append_images=frames[1:], quality=95)
    np.testing.assert_array_equal(pixels(data), pixels(jpeg(frames[0])))


@pytest.mark.parametrize(
    ("size", "least_side", "factor"),
    [((320, 160), 160, 1), ((320, 160), 80, 2), ((320, 160), 81, 1), ((320, 160), 1, 8)],
)
def test_a_jpeg_is_never_shrunk_below_the_least_side(size, least_side, factor):
    decoded = decode(jpeg(scene(*size)), LIMITS, least_side=least_side)
    assert decoded.image.size == (size[0] // factor, size[1] // factor)


def test_png_is_never_shrunk():
    assert decode(png(scene(320, 160)), LIMITS, least_side=1).image.size == (320, 160)


SEEDS = {
    "jpeg": jpeg(scene(40, 30), exif=with_orientation(6)),
    "png": png(scene(40, 30).convert("P")),
    "webp": to_file(scene(40, 30), "WEBP", exif=with_orientation(3)),
    "mpo": to_file(scene(40, 30), "MPO", save_all=True, append_images=[scene(40, 30, 1)]),
}


@pytest.mark.parametrize("kind", ["jpeg", "png", "webp"])
def test_a_file_cut_short_is_undecodable(kind):
    data = SEEDS[kind]
    for length in range(0, len(data) - 30, 10):
        with pytest.raises(UndecodableImage):
            decode(data[:length], LIMITS)


@pytest.mark.parametrize("kind", SEEDS)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_a_file_damaged_anywhere_is_an_image_or_refused(kind):
    data = SEEDS[kind]
    outcomes = set()
    for position in range(0, len(data), 10):
        damaged = bytearray(data)
        damaged[position] ^= 0xFF
        outcomes.add(outcome(bytes(damaged)))
    assert UndecodableImage in outcomes


def outcome(data: bytes) -> type:
    """Decode; gives Image or the class of the refusal, anything else comes out as raised."""
    try:
        decoded = decode(data, ImageLimits(max_pixels=1_000_000), least_side=8)
    except (UndecodableImage, UnsupportedImageFormat, ImageTooLarge) as error:
        return type(error)
    assert decoded.image.mode == "RGB"
    return Image.Image


def test_an_avif_file_without_its_image_is_undecodable():
    data = to_file(scene(40, 30), "AVIF")
    at = data.index(b"pitm") + 8
    damaged = data[:at] + b"\x7f\x7f" + data[at + 2 :]  # names an item that is not there
    with pytest.raises(UndecodableImage, match="header"):
        decode(damaged, ImageLimits(formats=("AVIF",)))


@given(st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff\xe1", b"\x89PNG\r\n\x1a\n"]))
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_any_bytes_are_an_image_or_refused(data, beginning):
    outcome(beginning + data)


@given(st.sampled_from(sorted(SEEDS)), st.data())
@settings(max_examples=200, deadline=None)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_any_damage_leaves_an_image_or_a_refusal(kind, data):
    damaged = bytearray(SEEDS[kind])
    places = st.integers(0, len(damaged) - 1)
    for position, value in data.draw(st.lists(st.tuples(places, st.integers(0, 255)), max_size=8)):
        damaged[position] = value
    outcome(bytes(damaged[: data.draw(st.integers(len(damaged) // 2, len(damaged)))]))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (to_file(scene(), "GIF"), "GIF"),
        (to_file(scene(), "BMP"), "BMP"),
        (to_file(scene(), "TIFF"), "TIFF"),
        (b"MM\0*" + bytes(20), "TIFF"),
        (b"%PDF-1.7\n", "PDF"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "SVG"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
    ],
)
def test_a_format_that_is_not_accepted_is_named(data, name):
    with pytest.raises(UnsupportedImageFormat, match=f"^{name} is not accepted") as caught:
        decode(data, LIMITS)
    assert caught.value.status == 415


def test_a_format_accepted_by_setting_is_decoded():
    limits = ImageLimits(formats=("BMP",))
    image = scene(12, 9)
    np.testing.assert_array_equal(pixels(to_file(image, "BMP"), limits), np.asarray(image))
    with pytest.raises(UnsupportedImageFormat, match="JPEG is not accepted; accepted are BMP"):
        decode(jpeg(), limits)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"no picture at all", "no image of an accepted format"),
        (b"\x89PNG", "begins like a PNG file but is damaged"),
        (b"\xff\xd8\xff" + bytes(50), "begins like a JPEG file but is damaged"),
    ],
)
def test_what_is_no_image_is_undecodable(data, words):
    with pytest.raises(UndecodableImage, match=words) as caught:
        decode(data, LIMITS)
    assert caught.value.status == 422


def test_a_png_header_that_lies_about_its_length_is_a_damaged_header():
    data = bytearray(png())
    data[8:12] = struct.pack(">I", 5)
    with pytest.raises(UndecodableImage, match="damaged"):
        decode(bytes(data), LIMITS)


def test_a_palette_picture_without_a_palette_is_undecodable():
    data = png(Image.fromarray(np.array([[0, 1]], np.uint8), "P"))
    start, end = data.index(b"PLTE") - 4, data.index(b"IDAT") - 4
    with pytest.raises(UndecodableImage, match="damaged"):
        decode(data[:start] + data[end:], LIMITS)


def huge_png(width: int, height: int) -> bytes:
    """Give a PNG whose header promises pixels that are not there: decoding it would fail."""
    data = bytearray(png(Image.new("L", (1, 1))))
    data[16:24] = struct.pack(">II", width, height)
    checksum = zlib.crc32(data[12:29])
    data[29:33] = struct.pack(">I", checksum)
    return bytes(data)


def test_pixels_are_counted_before_decoding():
    with pytest.raises(ImageTooLarge, match="8000x7000; at most 50,000,000 pixels") as caught:
        decode(huge_png(8000, 7000), LIMITS)
    assert (caught.value.status, caught.value.limit) == (413, 50_000_000)


@pytest.mark.parametrize("side", [12_000, 30_000, 65_000])
def test_decompression_bombs_are_too_large(side):
    with pytest.raises(ImageTooLarge, match=f"image is {side}x{side}; at most") as caught:
        decode(huge_png(side, side), LIMITS)
    assert caught.value.limit == 50_000_000


def test_pixel_limit_is_met_exactly_and_not_exceeded():
    limits = ImageLimits(max_pixels=600)
    assert pixels(png(scene(30, 20)), limits).shape == (20, 30, 3)
    with pytest.raises(ImageTooLarge, match="31x20; at most 600"):
        decode(png(scene(31, 20)), limits)


def test_a_pixel_limit_over_pillows_own_is_met_exactly_and_not_exceeded():
    size = 20_000 * 10_000  # Pillow by itself refuses from 179 megapixels
    roomy = ImageLimits(max_pixels=size, max_decoded_bytes=size)
    with pytest.raises(UndecodableImage, match="image is damaged"):  # its pixels are not there
        decode(huge_png(20_000, 10_000), roomy)
    with pytest.raises(ImageTooLarge, match="image is 20000x10001; at most 200,000,000") as caught:
        decode(huge_png(20_000, 10_001), roomy)
    assert caught.value.limit == size


@pytest.mark.parametrize("turn", [1, -1])
def test_aspect_limit_is_met_exactly_and_not_exceeded(turn):
    limits = ImageLimits(max_aspect=10)
    decode(png(scene(*(30, 3)[::turn])), limits)
    with pytest.raises(ImageTooLarge, match="one side may be at most 10 x the other") as caught:
        decode(huge_png(*(31, 3)[::turn]), limits)
    assert caught.value.limit == 10


def test_nothing_is_left_open_of_a_refused_file():
    buffer = io.BytesIO(png()[:100])  # a leak would warn, and warnings are errors
    with pytest.raises(UndecodableImage):
        decode(buffer.getvalue(), LIMITS)

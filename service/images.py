"""Untrusted bytes to an upright RGB image: the only place that touches them.

Order matters: format, pixels and aspect are checked on the header, before anything is decoded, so
that a refused image costs less than a served one.
"""

import io
import struct
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

from service.colours import to_srgb
from service.containers import check_container
from service.errors import ImageTooLarge, ServiceError, UndecodableImage, UnsupportedImageFormat

ORIENTATION_TAG = 0x0112
"""EXIF tag of the camera's orientation."""

UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation; 5 to 8 swap width and height."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
"""What may be accepted: formats whose header tells the size that is decoded, and that start no
program. The first three are accepted by default."""

LARGE_PIXELS = 8_000_000
"""Images of more pixels are decoded one at a time: a few of them at once would take gigabytes."""

COUNTS_FRAMES = ("PNG", "WEBP", "AVIF", "MPO")
"""Formats that state the number of frames; in the others they would have to be walked."""

BYTES_PER_PIXEL = {"1": 1, "L": 1, "P": 1, "I;16": 2}
"""What Pillow keeps in fewer than four bytes."""

BYTES_PER_COEFFICIENT = 2
"""Of a progressive JPEG all coefficients are kept until its last scan, at full size."""

BAND_PIXELS = 1 << 20
"""Pixels of a band in which a large image is converted: copies stay small."""

SIGNATURES: dict[str, bytes | tuple[bytes, ...]] = {
    "GIF": b"GIF8",
    "BMP": b"BM",
    "TIFF": (b"II*\0", b"MM\0*"),
    "PDF": b"%PDF",
    "SVG": (b"<svg", b"<?xml"),
    "JPEG 2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL "),
    "PSD": b"8BPS",
    "JPEG": b"\xff\xd8\xff",
    "PNG": b"\x89PNG",
}
"""First bytes of formats that people send, to name what was refused."""

DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    OverflowError,
    EOFError,
    struct.error,
    MemoryError,
    AssertionError,
    RuntimeError,
)
"""What Pillow's parsers raise on damaged files."""


Image.core.set_block_size(1 << 20)  # type: ignore[attr-defined]  # not in its stubs
Image.core.set_blocks_max(16)  # type: ignore[attr-defined]  # not in its stubs
# Pillow keeps 16 MB of freed pixels for the next image instead of asking for fresh pages each time.
Image.MAX_IMAGE_PIXELS = None  # a bound of its own, one for the process; `_open` holds ours instead


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What an image may be.

    Attributes:
        max_pixels: Width times height.
        max_aspect: Longer side divided by the shorter.
        max_frames: Frames of an animation, where the file's header counts them.
        max_decoded_bytes: Memory of the image while it is decoded. A JPEG that is shrunk on the way
            takes little, unless it is progressive.
        formats: Pillow's names of the accepted formats, some of `FORMATS`.
    """

    max_pixels: int = 50_000_000
    max_aspect: int = 200
    max_frames: int = 1000
    max_decoded_bytes: int = 100_000_000
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP")


class DecodedImage(NamedTuple):
    """An upright RGB image, perhaps shrunk while decoding, and the size it has at full scale."""

    image: Image.Image
    width: int
    height: int


def decode(
    data: bytes,
    limits: ImageLimits,
    *,
    least_side: int | None = None,
    one_at_a_time: AbstractContextManager[object] | None = None,
) -> DecodedImage:
    """Decode an image file: first frame, upright, sRGB, transparency over white.

    Colours are brought to sRGB by the file's profile. 16-bit images are scaled to 8 bits.

    Args:
        data: The file's bytes.
        limits: What the image may be.
        least_side: If given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (scaling inside
            the DCT, several times cheaper), as long as both sides keep at least so many pixels.
        one_at_a_time: A lock that is held while an image of over `LARGE_PIXELS` is decoded.

    Raises:
        UnsupportedImageFormat: if the format is not on the allow-list.
        ImageTooLarge: if pixels, aspect or frames exceed the limits; nothing was decoded then.
        UndecodableImage: if the bytes are no readable image.
    """
    image = _open(data, limits)
    width, height = image.size
    if least_side is not None:
        image.draft(None, (least_side, least_side))
    _check_memory(image, width * height, limits.max_decoded_bytes)
    is_large = width * height > LARGE_PIXELS
    with one_at_a_time if is_large and one_at_a_time else nullcontext():
        upright, orientation = _load(image)
    if orientation >= 5:
        width, height = height, width
    return DecodedImage(upright, width, height)


def _load(image: Image.Image) -> tuple[Image.Image, int]:
    """Decode the pixels; give the upright RGB image and the orientation it had."""
    try:
        image.load()  # Pillow reads lazily: damage shows here
        orientation = _orientation(image)
        upright = _to_rgb(image)
    except DAMAGE as error:
        raise UndecodableImage(f"image is damaged: {_reason(error)}") from error
    if orientation in UPRIGHT:
        upright = upright.transpose(UPRIGHT[orientation])
    return upright, orientation


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    """Read the header and hold it against the limits."""
    check_container(data)
    try:
        image = Image.open(io.BytesIO(data), formats=limits.formats)
    except UnidentifiedImageError as error:
        raise _unidentified(data, limits.formats) from error
    except DAMAGE as error:
        raise UndecodableImage(f"image has a damaged header: {_reason(error)}") from error
    width, height = image.size
    if width * height > limits.max_pixels:
        raise ImageTooLarge(
            f"image is {width}x{height}; at most {limits.max_pixels:,} pixels are accepted",
            limit=limits.max_pixels,
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        raise ImageTooLarge(
            f"image is {width}x{height}; one side may be at most {limits.max_aspect} x the other",
            limit=limits.max_aspect,
        )
    num_frames = getattr(image, "n_frames", 1) if image.format in COUNTS_FRAMES else 1
    if num_frames > limits.max_frames:
        raise ImageTooLarge(
            f"image has {num_frames} frames; at most {limits.max_frames} are accepted",
            limit=limits.max_frames,
        )
    return image


def _check_memory(image: Image.Image, num_pixels: int, limit: int) -> None:
    """Refuse an image that would take too much memory, by what decoders are known to take."""
    num_bytes = image.width * image.height * BYTES_PER_PIXEL.get(image.mode, 4)
    if isinstance(image, JpegImageFile) and "progressive" in image.info:
        areas = [horizontal * vertical for _, horizontal, vertical, _ in image.layer]
        num_bytes += num_pixels * BYTES_PER_COEFFICIENT * sum(areas) // max(1, *areas)
    if num_bytes > limit:
        raise ImageTooLarge(
            f"image takes {num_bytes:,} bytes to decode; at most {limit:,} are accepted",
            limit=limit,
        )


def _unidentified(data: bytes, formats: Sequence[str]) -> ServiceError:
    """Say what the bytes are, as far as their beginning tells."""
    accepted = ", ".join(formats)
    if not data:
        return UndecodableImage("image is empty")
    for name, signature in SIGNATURES.items():
        if data.startswith(signature):
            if name in formats:
                return UndecodableImage(f"image begins like a {name} file but is damaged")
            return UnsupportedImageFormat(f"{name} is not accepted; accepted are {accepted}")
    return UndecodableImage(f"bytes are no image of an accepted format ({accepted})")


def _orientation(image: Image.Image) -> int:
    """Give the EXIF orientation, 1 (upright) where there is none or it is damaged."""
    if "exif" not in image.info:
        return 1
    try:
        value = image.getexif().get(ORIENTATION_TAG, 1)
    except DAMAGE:
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to sRGB."""
    profile = image.info.get("icc_profile")
    if image.mode == "RGB" and "transparency" not in image.info:
        return to_srgb(image, profile) if profile else image
    if image.mode.startswith(("I", "F")):
        return to_srgb(_from_16_bit(image), profile)
    if image.has_transparency_data:
        return to_srgb(_over_white(image), profile)
    if image.mode not in ("L", "CMYK"):
        image = image.convert("RGB")
    return to_srgb(image, profile)


def _over_white(image: Image.Image) -> Image.Image:
    """Lay a transparent image over white, in bands."""
    white = Image.new("RGB", image.size, "white")
    for top, bottom in _bands(image):
        band = image.crop((0, top, image.width, bottom)).convert("RGBA")
        white.paste(band, (0, top), mask=band)
    return white


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits; Pillow's own conversion would clip everything above 255."""
    if image.mode == "F":
        raise UndecodableImage("pictures of floating-point numbers have no range to scale from")
    transparent = image.info.get("transparency")
    grey = np.empty((image.height, image.width), np.uint8)
    for top, bottom in _bands(image):
        values = np.asarray(image.crop((0, top, image.width, bottom))).clip(0, 65_535)
        grey[top:bottom] = np.rint(values / np.float32(257))
        if isinstance(transparent, int):
            grey[top:bottom][values == transparent] = 255
    return Image.fromarray(grey)


def _bands(image: Image.Image) -> Iterator[tuple[int, int]]:
    """Give top and bottom of the bands in which a large image is converted."""
    num_rows = max(1, BAND_PIXELS // image.width)
    for top in range(0, image.height, num_rows):
        yield top, min(top + num_rows, image.height)


def _reason(error: BaseException) -> str:
    """Give the parser's own words, cut short."""
    return (str(error) or type(error).__name__)[:120]

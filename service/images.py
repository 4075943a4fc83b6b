"""Untrusted bytes to an upright RGB image: the only place that touches them.

Order matters: format, pixels and aspect are checked on the header, before anything is decoded, so
that a refused image costs less than a served one.
"""

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

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
)
"""What Pillow's parsers raise on damaged files."""


Image.core.set_block_size(1 << 20)  # type: ignore[attr-defined]  # not in its stubs
Image.core.set_blocks_max(16)  # type: ignore[attr-defined]  # not in its stubs
# Pillow keeps 16 MB of freed pixels for the next image instead of asking for fresh pages each time.


@dataclass(frozen=True, kw_only=True)
class ImageLimits:
    """What an image may be.

    Attributes:
        max_pixels: Width times height.
        max_aspect: Longer side divided by the shorter.
        formats: Pillow's names of the accepted formats.
    """

    max_pixels: int = 50_000_000
    max_aspect: int = 200
    formats: tuple[str, ...] = ("JPEG", "PNG", "WEBP")


class DecodedImage(NamedTuple):
    """An upright RGB image, perhaps shrunk while decoding, and the size it has at full scale."""

    image: Image.Image
    width: int
    height: int


def decode(data: bytes, limits: ImageLimits, *, least_side: int | None = None) -> DecodedImage:
    """Decode an image file: first frame, upright, RGB, transparency over white.

    Colour profiles are ignored. 16-bit images are scaled to 8 bits.

    Args:
        data: The file's bytes.
        limits: What the image may be.
        least_side: If given, a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size (scaling inside
            the DCT, several times cheaper), as long as both sides keep at least so many pixels.

    Raises:
        UnsupportedImageFormat: if the format is not on the allow-list.
        ImageTooLarge: if pixels or aspect exceed the limits; nothing was decoded then.
        UndecodableImage: if the bytes are no readable image.
    """
    image = _open(data, limits)
    width, height = image.size
    try:
        if least_side is not None:
            image.draft(None, (least_side, least_side))
        image.load()  # Pillow reads lazily: damage shows here
        orientation = _orientation(image)
        upright = _to_rgb(image)
    except DAMAGE as error:
        raise UndecodableImage(f"image is damaged: {_reason(error)}") from error
    if orientation in UPRIGHT:
        upright = upright.transpose(UPRIGHT[orientation])
    if orientation >= 5:
        width, height = height, width
    return DecodedImage(upright, width, height)


def _open(data: bytes, limits: ImageLimits) -> Image.Image:
    """Read the header and hold it against the limits."""
    try:
        image = Image.open(io.BytesIO(data), formats=limits.formats)
    except UnidentifiedImageError as error:
        raise _unidentified(data, limits.formats) from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageTooLarge(
            f"image has too many pixels; at most {limits.max_pixels:,} are accepted",
            limit=limits.max_pixels,
        ) from error
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
    return image


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
    """Convert any mode to RGB."""
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode.startswith(("I", "F")):
        return _from_16_bit(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(rgba, mask=rgba.getchannel("A"))
        return white
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Scale 16-bit grey to 8 bits; Pillow's own conversion would clip everything above 255."""
    values = np.asarray(image).astype(np.float32) / 257.0
    grey = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _reason(error: BaseException) -> str:
    """Give the parser's own words, cut short."""
    return (str(error) or type(error).__name__)[:120]

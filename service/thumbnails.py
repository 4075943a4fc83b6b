"""Small pictures for people: what a gallery shows of what is in it."""

import io

from PIL import Image

from service.resample import resample

LONGER_SIDE = 320
"""Pixels of a thumbnail: a grid's cell on a screen of double density."""

QUALITY = 82


def shrink(image: Image.Image) -> Image.Image:
    """Make an image small; one that is small already stays as it is."""
    width, height = image.size
    share = LONGER_SIDE / max(width, height)
    if share >= 1:
        return image
    size = max(1, round(width * share)), max(1, round(height * share))
    return resample(image, size, (0.0, 0.0, width, height))


def to_jpeg(image: Image.Image) -> bytes:
    """Write an RGB image as a JPEG file."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()

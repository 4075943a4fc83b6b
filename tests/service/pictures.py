"""Pictures made by the tests, and files of them."""

import io

import numpy as np
from PIL import Image


def scene(width: int = 96, height: int = 72, seed: int = 0) -> Image.Image:
    """Give a smooth picture of many colours, no two places alike."""
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def jpeg(image: Image.Image | None = None, **options: object) -> bytes:
    """Write a JPEG file, by default of a scene."""
    return to_file(image or scene(), "JPEG", **({"quality": 95} | options))


def png(image: Image.Image | None = None, **options: object) -> bytes:
    """Write a PNG file, by default of a scene: lossless."""
    return to_file(image or scene(), "PNG", **options)


def to_file(image: Image.Image, kind: str, **options: object) -> bytes:
    """Write an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()

"""Colour profiles: what the numbers of a picture mean, brought to sRGB, which models learn from.

Most profiles are sRGB under one of its names; they are recognised by what they do to a few hundred
colours, once, and cost nothing from then on.
"""

import io
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

MAX_PROFILE_BYTES = 4_000_000
"""Profiles for print take two megabytes; what is larger is ignored."""

SAME = 3
"""Steps of 255 by which rounding, and sRGB's many editions, may move a colour."""

COLOUR_SPACES = {"RGB": "RGB", "CMYK": "CMYK", "L": "GRAY"}
"""Pillow's modes, and the profiles' names of what they hold."""


def to_srgb(image: Image.Image, profile: object) -> Image.Image:
    """Convert an RGB, CMYK or grey image to RGB by its profile.

    Args:
        image: In mode RGB, CMYK or L.
        profile: ICC profile as found in the file; one that is absent, damaged, or made for another
            kind of image is ignored.
    """
    if isinstance(profile, bytes) and len(profile) <= MAX_PROFILE_BYTES:
        transform = _transform(profile, image.mode)
        if transform is not None:
            converted = transform.apply(image)
            return converted
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy


@lru_cache(maxsize=8)
def _transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Give the way to sRGB; None where there is none to go."""
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        if opened.profile.xcolor_space.strip() != COLOUR_SPACES[mode]:
            return None
        transform = ImageCms.ImageCmsTransform(opened, _srgb(), mode, "RGB")
    except (OSError, ImageCms.PyCMSError, ValueError, TypeError):  # damaged, in one way or another
        return None
    if mode != "RGB":
        return transform
    probe = _probe()
    moved = np.asarray(transform.apply(probe), np.int16) - np.asarray(probe)
    return transform if np.abs(moved).max() > SAME else None


def _srgb() -> ImageCms.ImageCmsProfile:
    """Give the profile that models learn from."""
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _probe() -> Image.Image:
    """Give colours from all over the cube."""
    levels = np.linspace(0, 255, 9).round().astype(np.uint8)
    cube = np.stack(np.meshgrid(levels, levels, levels, indexing="ij"), axis=-1)
    return Image.fromarray(cube.reshape(27, 27, 3))

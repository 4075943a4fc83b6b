"""Antialiased bicubic resampling of a part of an image, as Pillow defines it.

That definition is what the published weights were evaluated with, and the one in training's
evaluation, export and serving. Where the package `cykooz.resizer` can be had it computes the same
convolution with vector instructions, five times faster (`python -m benchmarks.decode`); elsewhere
Pillow does. They differ by the rounding between the two passes: a test holds them together.
"""

from PIL import Image

try:
    from cykooz_resizer import CropBox, FilterType, ResizeAlg, ResizeOptions, Resizer
except ImportError:  # there is no wheel for this platform
    HAS_FAST_RESIZER = False
else:
    HAS_FAST_RESIZER = True

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels; fractions are honoured."""


def resample(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    """Resample the part of an RGB image inside `box` to `size` (width, height)."""
    if not HAS_FAST_RESIZER:
        return resample_with_pillow(image, size, box)
    left, top, right, bottom = box
    options = ResizeOptions(
        resize_alg=ResizeAlg.convolution(FilterType.catmull_rom),  # Pillow's bicubic, a = -0.5
        crop_box=CropBox(left, top, right - left, bottom - top),
        use_alpha=False,
    )
    resampled = Image.new("RGB", size)
    Resizer().resize_pil(image, resampled, options)
    return resampled


def resample_with_pillow(image: Image.Image, size: tuple[int, int], box: Box) -> Image.Image:
    """Do the same with Pillow."""
    return image.resize(size, Image.Resampling.BICUBIC, box=box)

"""Multi-crop: a decoded image becomes its global and local views.

The distribution is the published one (DINO's). What is random is drawn first, from the generator
that is given, then applied; so the same generator gives the same views wherever the pixel
operations run: in the loader's worker, or later on the training device (`pixel_ops`).

Shapes: V views of one image, S the side of a view, (3, S, S) uint8.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from service.images import DecodedImage
from trainer.pixel_ops import MAX_BLUR_RADIUS, PixelParameters, alter_pixels, blur_kernels

CROP_TRIES = 10
"""Draws of a box before the centre is taken, as in torchvision's RandomResizedCrop."""


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """How one view is made; the defaults are what all published views share.

    Attributes:
        size: Side of the view in pixels.
        scale: Smallest and largest share of the image's area that the crop covers.
        blur: Probability of the blur.
        solarize: Probability of solarizing.
        ratio: Smallest and largest width divided by height of the crop.
        flip: Probability of mirroring left and right.
        jitter: Probability of the colour jitter.
        strengths: Of brightness, contrast, saturation (factors 1 - s to 1 + s) and hue (turns).
        grey: Probability of taking the colour away.
        blur_radius: Smallest and largest standard deviation of the blur, in pixels.
    """

    size: int
    scale: tuple[float, float]
    blur: float
    solarize: float = 0.0
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    flip: float = 0.5
    jitter: float = 0.8
    strengths: tuple[float, float, float, float] = (0.4, 0.4, 0.2, 0.1)
    grey: float = 0.2
    blur_radius: tuple[float, float] = (0.1, 2.0)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size of a view is {self.size}, expected at least 1 pixel")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise ValueError(f"scale is {self.scale}, expected 0 < smallest <= largest <= 1")
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(f"ratio is {self.ratio}, expected 0 < smallest <= largest")
        for name in ("blur", "solarize", "flip", "jitter", "grey"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a probability")
        if not all(0 <= strength <= 1 for strength in self.strengths) or self.strengths[3] > 1 / 3:
            raise ValueError(f"strengths are {self.strengths}, expected 0 to 1, hue 0 to 1/3")
        if not 0 < self.blur_radius[0] <= self.blur_radius[1] <= MAX_BLUR_RADIUS:
            raise ValueError(f"blur_radius is {self.blur_radius}, expected 0 < ... <= 2 pixels")


class Box(NamedTuple):
    """A crop in pixels of the image at full scale."""

    left: int
    top: int
    width: int
    height: int


class Views(NamedTuple):
    """The views of one image, each (3, S, S) uint8, and V rows of pixel operations.

    The operations are done already or still to be done, as `make_views` was asked.
    """

    pixels: tuple[Tensor, ...]
    parameters: PixelParameters


def global_views(
    size: int = 224, *, count: int = 2, scale: tuple[float, float] = (0.4, 1.0)
) -> tuple[ViewSpec, ...]:
    """Give the published global views; those after the second are drawn like the second."""
    first = ViewSpec(size=size, scale=scale, blur=1.0)
    others = ViewSpec(size=size, scale=scale, blur=0.1, solarize=0.2)
    return (first, *[others] * (count - 1))


def local_views(
    size: int = 96, *, count: int = 8, scale: tuple[float, float] = (0.05, 0.4)
) -> tuple[ViewSpec, ...]:
    """Give the published local views; add the results up for several sizes."""
    return (ViewSpec(size=size, scale=scale, blur=0.5),) * count


def least_side(specs: tuple[ViewSpec, ...]) -> int:
    """Give the shorter side below which decoding must not shrink an image.

    So that a crop of the smallest area, at the most extreme ratio, is not enlarged because of it.
    """
    sides = (
        spec.size / math.sqrt(spec.scale[0] * min(spec.ratio[0], 1 / spec.ratio[1]))
        for spec in specs
    )
    return math.ceil(max(sides))


@torch.inference_mode()
def make_views(
    image: DecodedImage, specs: tuple[ViewSpec, ...], rng: np.random.Generator, *, alter: bool
) -> Views:
    """Draw and cut all views of an image.

    Args:
        image: Upright RGB, perhaps shrunk while decoding.
        specs: One for each view.
        rng: Where the randomness comes from; how much is taken depends on the number of views only.
        alter: Whether jitter, grey, blur and solarize are done here; if not, `alter_pixels` does
            them to the same effect with the parameters returned.
    """
    boxes = draw_boxes(rng, (image.width, image.height), specs)
    flips = rng.random(len(specs)) < [spec.flip for spec in specs]
    parameters = draw_pixel_parameters(rng, specs)
    source = torch.from_numpy(np.array(image.image)).permute(2, 0, 1)
    shrink = (image.image.width / image.width, image.image.height / image.height)
    pixels = [
        cut(source, shrink_box(box, shrink), spec.size)
        for box, spec in zip(boxes, specs, strict=True)
    ]
    pixels = [view.flip(2) if flip else view for view, flip in zip(pixels, flips, strict=True)]
    if alter:
        rows = (parameters.rows(slice(v, v + 1)) for v in range(len(specs)))
        pixels = [alter_pixels(view[None], row)[0] for view, row in zip(pixels, rows, strict=True)]
    return Views(tuple(view.contiguous() for view in pixels), parameters)


def draw_boxes(
    rng: np.random.Generator, size: tuple[int, int], specs: tuple[ViewSpec, ...]
) -> list[Box]:
    """Draw a crop for each view; size is the image's width and height."""
    uniform = rng.random((len(specs), CROP_TRIES, 4))
    return [_box(tries, size, spec) for tries, spec in zip(uniform, specs, strict=True)]


def _box(tries: NDArray[np.float64], size: tuple[int, int], spec: ViewSpec) -> Box:
    """Take the first of (T, 4) uniform draws that fits, else the centre."""
    width, height = size
    log_ratio = (math.log(spec.ratio[0]), math.log(spec.ratio[1]))
    for area, ratio, across, down in tries.tolist():
        crop_area = width * height * (spec.scale[0] + area * (spec.scale[1] - spec.scale[0]))
        aspect = math.exp(log_ratio[0] + ratio * (log_ratio[1] - log_ratio[0]))
        crop_width = round(math.sqrt(crop_area * aspect))
        crop_height = round(math.sqrt(crop_area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            left = int(across * (width - crop_width + 1))
            return Box(left, int(down * (height - crop_height + 1)), crop_width, crop_height)
    aspect = min(max(width / height, spec.ratio[0]), spec.ratio[1])
    crop_width = min(width, max(1, round(height * aspect)))
    crop_height = min(height, max(1, round(width / aspect)))
    return Box((width - crop_width) // 2, (height - crop_height) // 2, crop_width, crop_height)


def draw_pixel_parameters(rng: np.random.Generator, specs: tuple[ViewSpec, ...]) -> PixelParameters:
    """Draw V rows of pixel operations."""
    V = len(specs)
    probabilities = [(spec.jitter, spec.grey, spec.blur, spec.solarize) for spec in specs]
    jitter, grey, blur, solarize = (rng.random((V, 4)) < probabilities).T
    order = np.where(jitter[:, None], rng.random((V, 4)).argsort(axis=1), -1)
    neutral = np.array([1.0, 1.0, 1.0, 0.0])
    strengths = np.array([spec.strengths for spec in specs])
    factors = neutral + strengths * rng.uniform(-1, 1, (V, 4))
    smallest, largest = np.array([spec.blur_radius for spec in specs]).T
    radius = np.where(blur, smallest + rng.random(V) * (largest - smallest), 0.0)
    return PixelParameters(
        order=torch.from_numpy(order.astype(np.int8)),
        factors=torch.from_numpy(factors.astype(np.float32)),
        grey=torch.from_numpy(grey.copy()),
        blur=torch.from_numpy(blur_kernels(radius)),
        solarize=torch.from_numpy(solarize.copy()),
    )


def shrink_box(box: Box, shrink: tuple[float, float]) -> Box:
    """Find a crop on an image of which decoding left the given shares of width and height."""
    left, top = int(box.left * shrink[0]), int(box.top * shrink[1])
    width, height = round(box.width * shrink[0]), round(box.height * shrink[1])
    return Box(left, top, max(1, width), max(1, height))


def cut(source: Tensor, box: Box, size: int) -> Tensor:
    """Resize a crop of (3, H, W) uint8 to (3, S, S), bicubic and antialiased as Pillow does."""
    crop = source[None, :, box.top : box.top + box.height, box.left : box.left + box.width]
    return functional.interpolate(crop, (size, size), mode="bicubic", antialias=True)[0]

"""Correspondence accuracy: are the regions of an image found again in its mirrored, grey copy?

The published measure (EsViT, section 4.4): every region of the image takes its most similar region
of the copy; the 10 most similar pairs count, and a pair is right if it joins a region with exactly
its mirror place. It needs no labels. Swin-T has 66 % with the view task alone, 91 % with both.

Shapes: B images, L regions of a square grid, C features, S the side of an image.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from esvit.correspondence import match
from trainer.augment import ViewSpec, draw_pixel_parameters
from trainer.pixel_ops import PixelParameters, alter_pixels

NUM_PAIRS = 10
COPY_STREAM = 5
"""First word of the seed of a copy's colours; the loader has 1 to 3, the step 4."""


class Correspondence(NamedTuple):
    """What each of B images has, all (B,) float32.

    Attributes:
        accuracy: Share of the best pairs that are right.
        distance_px: Mean distance of the best pairs' matches from the right place.
        next_score: Cosine of the best pair that does not count; 0 if there is none.
    """

    accuracy: Tensor
    distance_px: Tensor
    next_score: Tensor


def mirrored_copies(pixels: Tensor, numbers: Sequence[int]) -> Tensor:
    """Mirror, jitter (probability 0.8) and grey images.

    Args:
        pixels: (B, 3, S, S) uint8.
        numbers: One for each image; the same number gives the same colours every time.

    Returns:
        (B, 3, S, S) uint8.
    """
    spec = ViewSpec(size=pixels.shape[-1], scale=(1.0, 1.0), blur=0.0, grey=1.0)
    rows = [
        draw_pixel_parameters(np.random.default_rng([COPY_STREAM, number]), (spec,))
        for number in numbers
    ]
    parameters = PixelParameters(*(torch.cat(column) for column in zip(*rows, strict=True)))
    return alter_pixels(pixels.flip(3), parameters)


def measure(original: Tensor, mirrored: Tensor, image_px: int) -> Correspondence:
    """Compare the regions (B, L, C) of images with those of their mirrored copies.

    Args:
        original: Of the images.
        mirrored: Of the copies, at the same places of the grid.
        image_px: S.

    Raises:
        ValueError: if the grid is not square.
    """
    L = original.shape[1]
    side = math.isqrt(L)
    if side * side != L:
        raise ValueError(f"{L} regions are no square grid")
    indices, scores, _ = match(original, mirrored)
    order = scores.argsort(dim=1, descending=True)
    best = order[:, :NUM_PAIRS]  # (B, P)
    found = indices.gather(1, best)
    right = best // side * side + (side - 1 - best % side)
    rows = (found // side - right // side).float()
    columns = (found % side - right % side).float()
    following = scores.gather(1, order[:, NUM_PAIRS : NUM_PAIRS + 1])
    return Correspondence(
        accuracy=(found == right).float().mean(dim=1),
        distance_px=torch.hypot(rows, columns).mean(dim=1) * (image_px / side),
        next_score=following.sum(dim=1),
    )

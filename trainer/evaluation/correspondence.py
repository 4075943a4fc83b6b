"""Correspondence accuracy: are the regions of an image found again in another view of it?

The published measure (EsViT, section 4.4): every region of the image takes its most similar region
of a mirrored, grey copy; the 10 most similar pairs count, and a pair is right if it joins a region
with exactly its mirror place. It needs no labels. Swin-T has 66 % with the view task alone, 91 %
with both. The same measure for two views of any known geometry: a pair is right if the region found
is the one that holds the middle of the other, and regions that the second view does not see do not
count.

Shapes: B images, L regions of a square grid, C features, S the side of an image, P pairs.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from esvit.correspondence import match
from trainer.augment import ViewSpec, draw_pixel_parameters
from trainer.evaluation.choice import choose, open_images
from trainer.evaluation.config import CorrespondenceConfig
from trainer.evaluation.images import SquareDataset, Squares
from trainer.evaluation.pairs import PairDataset, counterparts, draw_crops
from trainer.evaluation.subject import Subject
from trainer.pixel_ops import PixelParameters, alter_pixels

NUM_PAIRS = 10
COPY_STREAM = 5
"""First word of the seed of a copy's colours; the loader has 1 to 3, the step 4."""

LEAST_SIDE = 4
"""Regions in a row that two free views need, so that some region is seen by both."""


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
    return recoloured(pixels.flip(3), numbers)


def recoloured(pixels: Tensor, numbers: Sequence[int]) -> Tensor:
    """Jitter (probability 0.8) and grey images; arguments and result as of `mirrored_copies`."""
    spec = ViewSpec(size=pixels.shape[-1], scale=(1.0, 1.0), blur=0.0, grey=1.0)
    rows = [
        draw_pixel_parameters(np.random.default_rng([COPY_STREAM, number]), (spec,))
        for number in numbers
    ]
    parameters = PixelParameters(*(torch.cat(column) for column in zip(*rows, strict=True)))
    return alter_pixels(pixels, parameters)


def measure(original: Tensor, mirrored: Tensor, image_px: int) -> Correspondence:
    """Compare the regions (B, L, C) of images with those of their mirrored copies.

    Args:
        original: Of the images.
        mirrored: Of the copies, at the same places of the grid.
        image_px: S.

    Raises:
        ValueError: if the grid is not square.
    """
    side = grid_side(original)
    middles = torch.arange(side, device=original.device) + 0.5
    rows, columns = torch.meshgrid(middles, middles, indexing="ij")
    wanted = torch.stack([side - columns, rows], dim=-1).view(1, -1, 2)
    return measure_views(original, mirrored, wanted.expand(len(original), -1, -1), image_px)


def measure_views(first: Tensor, second: Tensor, wanted: Tensor, image_px: int) -> Correspondence:
    """Compare the regions (B, L, C) of two views.

    Args:
        first: Regions that are looked for.
        second: Regions among which they are found.
        wanted: (B, L, 2) x, y where the middle of each first region lies in the second view, in
            regions from its corner; NaN where the second view does not see it.
        image_px: S.

    Raises:
        ValueError: if the grid is not square.
    """
    side = grid_side(first)
    indices, scores, _ = match(first, second)
    scores = scores.masked_fill(wanted.isnan().any(-1), -torch.inf)
    order = scores.argsort(dim=1, descending=True)
    best = order[:, :NUM_PAIRS]  # (B, P)
    counts = scores.gather(1, best).isfinite()
    num_pairs = counts.sum(dim=1)
    found = indices.gather(1, best)
    cell = torch.stack([found % side, found // side], dim=-1)  # (B, P, 2) column, row
    right = wanted.gather(1, best[..., None].expand(-1, -1, 2))
    is_right = (cell == right.floor()).all(-1) & counts
    distance = torch.linalg.vector_norm(cell + 0.5 - right, dim=-1) * (image_px / side)
    following = scores.gather(1, order[:, NUM_PAIRS : NUM_PAIRS + 1])
    return Correspondence(
        accuracy=is_right.sum(dim=1) / num_pairs,
        distance_px=distance.where(counts, 0.0).sum(dim=1) / num_pairs,
        next_score=following.where(following.isfinite(), 0.0).sum(dim=1),
    )


def grid_side(regions: Tensor) -> int:
    """Give the regions (B, L, C) in a row.

    Raises:
        ValueError: if the grid is not square.
    """
    L = regions.shape[1]
    side = math.isqrt(L)
    if side * side != L:
        raise ValueError(f"{L} regions are no square grid")
    return side


def measure_correspondence(
    config: CorrespondenceConfig, subject: Subject
) -> dict[str, Any]:  # JSON
    """Average the measure over images.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if none can be read, or the network's regions do not allow it.
    """
    if config.geometry == "free" and config.fit == "pad":
        raise ValueError("free crops are of the picture, not of a border: --fit crop or stretch")
    images = choose(open_images(config.data), config.max_images, config.seed)
    chosen = (images.source, images.indices, subject.frozen.spec, config.fit)
    is_free = config.geometry == "free"
    dataset = PairDataset(*chosen) if is_free else SquareDataset(*chosen)

    def compute(squares: Squares) -> Tensor:
        numbers = [images.indices[position] for position in squares.positions]
        compare = _compare_crops if is_free else _compare_copies
        return torch.stack(compare(squares.pixels, numbers, subject), dim=1)

    key = {"measure": "correspondence", "geometry": config.geometry, "fit": config.fit}
    rows = subject.work_out(dataset, images, compute, key, name=config.geometry)
    accuracy, distance, following = rows.all().double().mean(0).tolist()
    return {
        "accuracy": accuracy,
        "distance_px": distance,
        "next_score": following,
        "geometry": config.geometry,
        "images": len(rows),
        "unreadable": rows.asked - len(rows),
    }


def _compare_copies(pixels: Tensor, numbers: Sequence[int], subject: Subject) -> Correspondence:
    """Compare images (B, 3, S, S) with their copies."""
    original = subject.frozen.run(pixels, "regions")
    copies = subject.frozen.run(mirrored_copies(pixels, numbers), "regions")
    return measure(original, copies, subject.frozen.spec.crop)


def _compare_crops(pixels: Tensor, numbers: Sequence[int], subject: Subject) -> Correspondence:
    """Compare the two crops (B, 2, 3, S, S) of images."""
    first = subject.frozen.run(pixels[:, 0], "regions")
    second = subject.frozen.run(recoloured(pixels[:, 1], numbers), "regions")
    side = grid_side(first)
    if side < LEAST_SIDE:
        raise ValueError(
            f"free views need {LEAST_SIDE} x {LEAST_SIDE} regions, the network has {side} x {side}"
        )
    wanted = counterparts([draw_crops(number) for number in numbers], side)
    return measure_views(first, second, wanted, subject.frozen.spec.crop)

"""Two views of an image with known geometry: where does each region of one lie in the other?

Shapes: B images, L regions of a square grid, S the side of a view.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from service.contract import PreprocessSpec
from service.preprocess import Fit, Geometry, least_side, place
from service.resample import resample
from trainer.data.sources import Source
from trainer.evaluation.images import Squared, decode

GEOMETRY_STREAM = 8
"""First word of the seed of the crops; the choice of images has 7."""

SCALE = (0.25, 1.0)
"""Smallest and largest share of the square that a crop has."""

LEAST_SEEN = 0.25
"""Share of the first view that the second must see."""

_RATIO = (3 / 4, 4 / 3)


class Crop(NamedTuple):
    """A view's place on the model's square, whose sides are 1; mirrored left to right or not."""

    left: float
    top: float
    width: float
    height: float
    is_flipped: bool

    def to_square(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map (..., 2) points x, y of the view, whose sides are 1, to the square."""
        across = 1 - points[..., 0] if self.is_flipped else points[..., 0]
        size, corner = (self.width, self.height), (self.left, self.top)
        return np.stack([across, points[..., 1]], -1) * size + corner

    def from_square(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map (..., 2) points of the square to the view; what it does not see is out of 0 to 1."""
        inside = (points - (self.left, self.top)) / (self.width, self.height)
        across = 1 - inside[..., 0] if self.is_flipped else inside[..., 0]
        return np.stack([across, inside[..., 1]], -1)


def draw_crops(number: int) -> tuple[Crop, Crop]:
    """Draw two crops that see enough of each other; the same number draws the same."""
    rng = np.random.default_rng([GEOMETRY_STREAM, number])
    while True:
        first, second = _draw(rng), _draw(rng)
        if _share_seen(first, second) >= LEAST_SEEN:
            return first, second


def counterparts(crops: Sequence[tuple[Crop, Crop]], side: int) -> Tensor:
    """Find where the middles of the first views' regions lie in the second views.

    Args:
        crops: B pairs.
        side: Regions in a row, L is its square.

    Returns:
        (B, L, 2) float32 x, y in regions from the second view's corner; NaN where it does not see
        the point.
    """
    middles = (np.arange(side) + 0.5) / side
    grid = np.stack(np.meshgrid(middles, middles), -1).reshape(-1, 2)  # row by row, x first
    points = np.stack([second.from_square(first.to_square(grid)) for first, second in crops])
    is_seen = ((points >= 0) & (points < 1)).all(-1, keepdims=True)
    return torch.from_numpy(np.where(is_seen, side * points, np.nan)).float()


@dataclass(frozen=True)
class PairDataset(Squared):
    """Two free crops of each of some images of a source."""

    source: Source
    indices: Sequence[int]
    spec: PreprocessSpec
    fit: Fit = "crop"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int] | None:
        """Give pixels (2, 3, S, S) uint8 of both views, and the position."""
        index = self.indices[position]
        smallest = math.sqrt(SCALE[0] * _RATIO[0])
        decoded = decode(self.source, index, math.ceil(least_side(self.spec) / smallest))
        if decoded is None:
            return None
        geometry = place(decoded.width, decoded.height, self.spec, self.fit)
        shrink = (decoded.image.width / decoded.width, decoded.image.height / decoded.height)
        views = []
        for crop in draw_crops(index):
            box = _box(crop, geometry, self.spec.crop, shrink)
            cut = np.array(resample(decoded.image, (self.spec.crop, self.spec.crop), box))
            views.append(torch.from_numpy(cut[:, ::-1].copy() if crop.is_flipped else cut))
        return torch.stack(views).permute(0, 3, 1, 2).contiguous(), position


def _draw(rng: np.random.Generator) -> Crop:
    """Draw a crop that lies within the square."""
    while True:
        area, ratio = (
            rng.uniform(*SCALE),
            math.exp(rng.uniform(math.log(_RATIO[0]), math.log(_RATIO[1]))),
        )
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if max(width, height) <= 1:
            left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
            return Crop(left, top, width, height, bool(rng.random() < 0.5))


def _share_seen(first: Crop, second: Crop) -> float:
    """Give the share of the first crop's area that the second covers."""
    width = min(first.left + first.width, second.left + second.width) - max(first.left, second.left)
    height = min(first.top + first.height, second.top + second.height) - max(first.top, second.top)
    return max(0.0, width) * max(0.0, height) / (first.width * first.height)


def _box(
    crop: Crop, geometry: Geometry, side: int, shrink: tuple[float, float]
) -> tuple[float, float, float, float]:
    """Find a crop on the decoded image: left, top, right, bottom."""
    corners = np.array([[crop.left, crop.top], [crop.left + crop.width, crop.top + crop.height]])
    (left, top), (right, bottom) = geometry.to_source(corners * side) * shrink
    width, height = geometry.width * shrink[0], geometry.height * shrink[1]
    return float(left), float(top), min(float(right), width), min(float(bottom), height)

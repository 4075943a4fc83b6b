"""Search by a part of a picture: which regions are asked for, and how well others match them.

What a store finds has, for each asked region, some similar one. Correspondence is stricter: a
region counts where match and back match agree, so that texture which is everywhere falls back.

Shape letters: L regions of a map, V visible ones, N asked ones, C channels.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.contract import ModelInfo
from service.correspond import RegionMap, correspond
from service.errors import InvalidRequest, PointOutOfBounds
from service.preprocess import Geometry
from service.regions import is_visible, region_boxes, region_centers, source_to_cells

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the upright picture."""


class Shown(NamedTuple):
    """A picture's regions, and where they lie on it.

    Attributes:
        regions: Of the whole map; in the border of a padded picture they are zero.
        geometry: Where the model's square lies on the picture.
    """

    regions: RegionMap
    geometry: Geometry


class PartMatch(NamedTuple):
    """How a picture holds the part of another that was asked for.

    Attributes:
        score: Sum of the mutual matches' cosines over the number of asked regions.
        similarity: Largest cosine of an asked region to any of the picture.
        num_mutual: How many of the asked regions are matched mutually.
        box: Where the matches lie; without a mutual one, where the most similar region lies.
    """

    score: float
    similarity: float
    num_mutual: int
    box: Box


def show(info: ModelInfo, visible_features: NDArray[np.float32], geometry: Geometry) -> Shown:
    """Give the region map of which a gallery keeps the visible rows.

    Args:
        info: The model's passport.
        visible_features: (V, C), as `take_visible` gives them.
        geometry: Where the model's square lies on the picture.
    """
    visible = is_visible(geometry, info.grid, info.preprocess.crop)
    features = np.zeros(info.outputs["regions"], np.float32)
    features[visible] = visible_features
    return Shown(RegionMap(features, info.grid, visible), geometry)


def take_visible(
    info: ModelInfo, features: NDArray[np.float32], geometry: Geometry
) -> NDArray[np.float32]:
    """Take of (L, C) region features those that lie on the picture, (V, C)."""
    return features[is_visible(geometry, info.grid, info.preprocess.crop)]


def cells_in(info: ModelInfo, shown: Shown, box: Box) -> NDArray[np.intp]:
    """Give the visible regions whose centre lies in a box; else the one that holds its middle.

    Raises:
        InvalidRequest: if the box has no area.
        PointOutOfBounds: if it lies outside of what the model sees.
    """
    left, top, right, bottom = box
    if not (left < right and top < bottom):
        raise InvalidRequest("a box is left, top, right, bottom, in pixels", field="box")
    side = info.preprocess.crop
    centers = region_centers(shown.geometry, info.grid, side)
    inside = np.all((centers >= (left, top)) & (centers <= (right, bottom)), axis=-1)
    cells = np.flatnonzero(inside & shown.regions.visible)
    if len(cells) == 0:
        middle = np.array([[(left + right) / 2, (top + bottom) / 2]])
        try:
            ((column, row),) = source_to_cells(middle, shown.geometry, info.grid, side).astype(int)
        except PointOutOfBounds as error:
            raise PointOutOfBounds(
                "the box lies outside what the model sees of the picture", field="box"
            ) from error
        cells = np.array([row * info.grid[1] + column])
    return cells


def match_part(
    info: ModelInfo, asked: Shown, cells: NDArray[np.intp], candidate: Shown
) -> PartMatch:
    """Match asked regions of one picture with another picture.

    Args:
        info: The model's passport.
        asked: The picture that is asked about.
        cells: (N,) indices of the asked regions.
        candidate: The picture that may hold them.
    """
    row, column = np.divmod(cells, info.grid[1])
    points = np.stack([column + 0.5, row + 0.5], axis=-1)
    matches = correspond(
        asked.regions, candidate.regions, points=points, subcell=False, is_same=False
    )
    column, row = np.floor(matches.target).astype(np.intp).T
    targets = row * info.grid[1] + column
    chosen = targets[matches.mutual]
    if len(chosen) == 0:
        chosen = targets[[int(matches.score.argmax())]]
    boxes = region_boxes(candidate.geometry, info.grid, info.preprocess.crop)[chosen]
    left, top = boxes[:, :2].min(axis=0)
    right, bottom = boxes[:, 2:].max(axis=0)
    return PartMatch(
        score=float(matches.score[matches.mutual].sum() / len(cells)),
        similarity=float(matches.score.max()),
        num_mutual=int(matches.mutual.sum()),
        box=(float(left), float(top), float(right), float(bottom)),
    )

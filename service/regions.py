"""The region map and the picture: which region lies where, in source pixels.

Shape letters: R rows and Q columns of the grid, L = R * Q regions, row by row.
"""

import numpy as np
from numpy.typing import NDArray

from service.errors import PointOutOfBounds
from service.preprocess import Geometry

Grid = tuple[int, int]
"""Rows and columns of the region map."""

ROUNDING = 1e-3
"""By how much of a cell a point may miss the map: answers hold positions to three digits, and a
box's corner that a client asks for must lie inside."""


def region_boxes(geometry: Geometry, grid: Grid, side: int) -> NDArray[np.float64]:
    """Give each region's box on the picture.

    Args:
        geometry: Where the model's square lies on the picture.
        grid: Rows and columns of the region map.
        side: Side of the model's square in pixels.

    Returns:
        (L, 4) boxes left, top, right, bottom in source pixels, cut at the picture's edge; a region
        that lies wholly in the border has no area.
    """
    rows, columns = grid
    row, column = np.divmod(np.arange(rows * columns), columns)
    cell = np.array([side / columns, side / rows])
    corner = np.stack([column, row], axis=-1) * cell
    boxes = np.concatenate([geometry.to_source(corner), geometry.to_source(corner + cell)], axis=-1)
    picture = np.array([geometry.width, geometry.height] * 2, np.float64)
    cut: NDArray[np.float64] = np.clip(boxes, 0.0, picture)
    return cut


def region_centers(geometry: Geometry, grid: Grid, side: int) -> NDArray[np.float64]:
    """Give each region's centre: (L, 2) x, y in source pixels; in the border it lies outside."""
    rows, columns = grid
    row, column = np.divmod(np.arange(rows * columns), columns)
    cells = np.stack([column + 0.5, row + 0.5], axis=-1)
    return cells_to_source(cells, geometry, grid, side)


def cells_to_source(
    cells: NDArray[np.float64], geometry: Geometry, grid: Grid, side: int
) -> NDArray[np.float64]:
    """Map (..., 2) positions column, row on the grid, in cells, to source pixels x, y."""
    rows, columns = grid
    return geometry.to_source(cells * (side / columns, side / rows))


def source_to_cells(
    points: NDArray[np.float64], geometry: Geometry, grid: Grid, side: int
) -> NDArray[np.float64]:
    """Map (N, 2) source pixels x, y to positions column, row on the grid, in cells.

    Raises:
        PointOutOfBounds: if a point lies outside the picture or outside what the model sees of it.
    """
    rows, columns = grid
    cells = geometry.to_model(points) / (side / columns, side / rows)
    picture = (geometry.width, geometry.height)
    inside = np.all((cells >= -ROUNDING) & (cells <= np.add((columns, rows), ROUNDING)), axis=-1)
    on_picture = np.all((points >= 0) & (points <= picture), axis=-1)
    if not on_picture.all():
        index = int(np.argmin(on_picture))
        raise PointOutOfBounds(
            f"point {index} lies outside the picture of {picture[0]}x{picture[1]}",
            field=f"points[{index}]",
        )
    if not inside.all():
        index = int(np.argmin(inside))
        raise PointOutOfBounds(
            f"point {index} lies outside what the model sees of the {picture[0]}x{picture[1]} "
            f"picture; fit=pad or fit=stretch show it the whole picture",
            field=f"points[{index}]",
        )
    return np.clip(cells, 0.0, np.nextafter((float(columns), float(rows)), 0.0))


def is_visible(geometry: Geometry, grid: Grid, side: int) -> NDArray[np.bool_]:
    """Tell which of the L regions lie on the picture, not in the border.

    A row or column counts if the picture fills at least half of it, or half of what it fills of
    the best one: in a narrow panorama no region is full.
    """
    boxes = region_boxes(geometry, grid, side)
    filled = boxes[:, 2:] - boxes[:, :2]
    enough: NDArray[np.bool_] = np.all(filled >= 0.5 * filled.max(axis=0) - 1e-9, axis=-1)
    return enough

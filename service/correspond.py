"""Region maps of two pictures to matches: which region of one is which of the other.

A region's match is its most similar region in the other picture by cosine, as the region-level
task matches them (EsViT, section 3.2); it is mutual if that region's own match leads back.

Shape letters: S source regions, T target regions, C channels, N matches.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.encoding import normalize
from service.regions import Grid


class RegionMap(NamedTuple):
    """One picture's regions.

    Attributes:
        features: (L, C) region features.
        grid: Rows and columns of the map.
        visible: (L,) which regions lie on the picture.
    """

    features: NDArray[np.float32]
    grid: Grid
    visible: NDArray[np.bool_]


class Matches(NamedTuple):
    """N matches between two region maps.

    Attributes:
        source: (N, 2) positions column, row on the source grid, in cells.
        target: (N, 2) positions column, row on the target grid, in cells.
        score: (N,) cosine similarity.
        mutual: (N,) whether the target's own best match is the source.
        query: (N,) index of the region or of the asked point that the match belongs to.
    """

    source: NDArray[np.float64]
    target: NDArray[np.float64]
    score: NDArray[np.float32]
    mutual: NDArray[np.bool_]
    query: NDArray[np.intp]

    def take(self, indices: NDArray[np.intp]) -> "Matches":
        """Give some of the matches, in the order of the indices."""
        return Matches(
            source=self.source[indices],
            target=self.target[indices],
            score=self.score[indices],
            mutual=self.mutual[indices],
            query=self.query[indices],
        )


def match_regions(
    features: NDArray[np.float32], target: RegionMap, own: NDArray[np.intp] | None
) -> tuple[NDArray[np.float32], NDArray[np.intp]]:
    """Find, for every feature, the most similar region of a picture.

    Args:
        features: (S, C) features.
        target: The picture that is searched.
        own: (S,) for each feature the target region that it must not match, if any.

    Returns:
        (S, T) cosines, -inf where a region may not be matched, and (S,) indices of the best.
    """
    cosines = normalize(features) @ normalize(target.features).T
    cosines = np.where(target.visible, cosines, np.float32(-np.inf))
    if own is not None:
        cosines[np.arange(len(own)), own] = -np.inf
    return cosines, cosines.argmax(axis=1)


def correspond(
    source: RegionMap,
    target: RegionMap,
    *,
    points: NDArray[np.float64] | None,
    subcell: bool,
    is_same: bool,
) -> Matches:
    """Match the regions of two pictures, or the asked points of the first.

    Args:
        source: The picture that is asked about.
        target: The picture that is searched.
        points: (N, 2) positions column, row on the source grid; None asks for every region.
        subcell: Refine positions to fractions of a region: a point's feature is interpolated
            between regions, a match is moved to the top of the parabola through its neighbours.
        is_same: Both are one picture: a region is matched with the most similar other region.

    Returns:
        A match for each query that has one: where nothing may be matched there is none.
    """
    if points is None:
        query = np.flatnonzero(source.visible)
        positions = _centers(query, source.grid)
        features, cells = source.features[query], query
    else:
        query, positions = np.arange(len(points)), points
        cells = cell_indices(points, source.grid)
        features = interpolate(source, points) if subcell else source.features[cells]
    cosines, best = match_regions(features, target, cells if is_same else None)
    _, back = match_regions(target.features[best], source, best if is_same else None)
    target_positions = _centers(best, target.grid)
    if subcell:
        target_positions = target_positions + peak_offsets(cosines, best, target.grid)
    score = cosines[np.arange(len(best)), best]
    matches = Matches(positions, target_positions, score, back == cells, query)
    return matches.take(np.flatnonzero(np.isfinite(score)))


def select(
    matches: Matches, *, mutual_only: bool, min_score: float | None, top_k: int | None
) -> Matches:
    """Keep what was asked for; `top_k` takes the highest scores and sorts by them."""
    keep = np.ones(len(matches.score), bool)
    if mutual_only:
        keep &= matches.mutual
    if min_score is not None:
        keep &= matches.score >= min_score
    indices = np.flatnonzero(keep)
    if top_k is not None:
        order = np.argsort(-matches.score[indices], kind="stable")
        indices = indices[order[:top_k]]
    return matches.take(indices)


def interpolate(region_map: RegionMap, points: NDArray[np.float64]) -> NDArray[np.float32]:
    """Interpolate a region map bilinearly at (N, 2) positions column, row; (N, C)."""
    rows, columns = region_map.grid
    at = np.clip(points - 0.5, 0.0, (columns - 1.0, rows - 1.0))
    low = np.floor(at).astype(np.intp)
    high = np.minimum(low + 1, (columns - 1, rows - 1))
    fraction = at - low
    between = np.zeros((len(points), region_map.features.shape[1]))
    for column, weight_x in ((low[:, 0], 1 - fraction[:, 0]), (high[:, 0], fraction[:, 0])):
        for row, weight_y in ((low[:, 1], 1 - fraction[:, 1]), (high[:, 1], fraction[:, 1])):
            between += region_map.features[row * columns + column] * (weight_x * weight_y)[:, None]
    return between.astype(np.float32)


def peak_offsets(
    cosines: NDArray[np.float32], best: NDArray[np.intp], grid: Grid
) -> NDArray[np.float64]:
    """Find the top of the parabola through each best cell and its two neighbours, by axis.

    Args:
        cosines: (N, T) similarities on the target grid.
        best: (N,) index of the best target region.
        grid: Rows and columns of the target map.

    Returns:
        (N, 2) offsets column, row within half a cell; zero at the edge of the map.
    """
    rows, columns = grid
    row, column = np.divmod(best, columns)
    query = np.arange(len(best))
    maps = cosines.reshape(-1, rows, columns)
    offsets = np.zeros((len(best), 2))
    for axis, (position, last) in enumerate(((column, columns - 1), (row, rows - 1))):
        step_x, step_y = (1, 0) if axis == 0 else (0, 1)
        inner = np.flatnonzero((position > 0) & (position < last))
        q, r, c = query[inner], row[inner], column[inner]
        before, after = maps[q, r - step_y, c - step_x], maps[q, r + step_y, c + step_x]
        offsets[inner, axis] = _parabola_top(before, maps[q, r, c], after)
    return offsets


def cell_indices(points: NDArray[np.float64], grid: Grid) -> NDArray[np.intp]:
    """Give the index of the region that each (N, 2) position column, row lies in."""
    column, row = np.floor(points).astype(np.intp).T
    cells: NDArray[np.intp] = row * grid[1] + column
    return cells


def _parabola_top(
    before: NDArray[np.float32], top: NDArray[np.float32], after: NDArray[np.float32]
) -> NDArray[np.float64]:
    """Give where in [-0.5, 0.5] the parabola through -1, 0 and 1 has its maximum."""
    inside = np.isfinite(before) & np.isfinite(top) & np.isfinite(after)
    left, middle, right = np.where(inside, np.array((before, top, after), np.float64), 0.0)
    bend = left - 2.0 * middle + right
    is_peak = inside & (bend < 0)
    top_at = 0.5 * (left - right) / np.where(is_peak, bend, -1.0)
    return np.where(is_peak, np.clip(top_at, -0.5, 0.5), 0.0)


def _centers(indices: NDArray[np.intp], grid: Grid) -> NDArray[np.float64]:
    """Give the centres of regions as (N, 2) positions column, row."""
    row, column = np.divmod(indices, grid[1])
    return np.stack([column + 0.5, row + 0.5], axis=-1)

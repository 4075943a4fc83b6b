"""Attention weights to maps, and maps to pictures.

Shape letters: A heads, R rows and Q columns of the grid, L = R * Q regions.
"""

import io
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.preprocess import Geometry
from service.regions import Grid

Head = int | Literal["mean", "all"]
QueryCell = int | Literal["all"] | None
Render = Literal["none", "heatmap", "overlay"]

VIRIDIS = np.array(
    [
        (68, 1, 84),
        (71, 44, 122),
        (59, 81, 139),
        (44, 113, 142),
        (33, 144, 141),
        (39, 173, 129),
        (92, 200, 99),
        (170, 220, 50),
        (253, 231, 37),
    ],
    np.float32,
)
"""Viridis at nine even steps: even in lightness, readable without colour vision."""

MAX_PICTURE_SIDE = 1024
"""Longer side in pixels that a rendered picture is cut down to."""

OVERLAY_OPACITY = 0.6
"""How much of the heat map shows over the picture where attention is highest."""


def attention_maps(
    attention: NDArray[np.float32], grid: Grid, head: Head, query_cell: QueryCell
) -> NDArray[np.float32]:
    """Pick the maps that were asked for.

    Args:
        attention: (A, L, L) weights of the last block, row = query, column = key.
        grid: Rows and columns of the region map.
        head: A head's number, "mean" over heads, or "all".
        query_cell: The region that asks, or "all" of them one by one; None pools over them, as the
            embedding does.

    Returns:
        (1, R, Q) maps, (A, R, Q) for all heads; with all queries (1, L, R, Q) or (A, L, R, Q). Each
        map sums to at most one.
    """
    rows = _rows(attention, query_cell)
    if head == "mean":
        rows = rows.mean(axis=0, keepdims=True)
    elif head != "all":
        rows = rows[head : head + 1]
    maps: NDArray[np.float32] = rows.reshape(*rows.shape[:-1], *grid)
    return maps


def render_heatmap(weights: NDArray[np.float32], geometry: Geometry, side: int) -> bytes:
    """Draw a map over the whole picture as PNG; what the model did not see is transparent.

    Args:
        weights: (R, Q) map.
        geometry: Where the model's square lies on the picture.
        side: Side of the model's square in pixels.
    """
    heat, seen = _heat_on_picture(weights, geometry, side)
    rgba = np.dstack([viridis(heat), np.where(seen, 255, 0).astype(np.uint8)])
    return _png(Image.fromarray(rgba))


def render_overlay(
    weights: NDArray[np.float32], geometry: Geometry, side: int, picture: Image.Image
) -> bytes:
    """Draw a map over the picture itself as PNG: the hotter, the more of the colour shows."""
    heat, seen = _heat_on_picture(weights, geometry, side)
    size = picture_size(geometry)
    below = np.asarray(picture.resize(size, Image.Resampling.BICUBIC), np.float32)
    opacity = (OVERLAY_OPACITY * heat * seen)[..., None]
    mixed = below * (1 - opacity) + viridis(heat) * opacity
    return _png(Image.fromarray(np.rint(mixed).astype(np.uint8)))


def to_draw_on(picture: Image.Image, geometry: Geometry) -> Image.Image:
    """Shrink a picture to what a drawing on it needs: 64 whole ones would take gigabytes."""
    size = picture_size(geometry)
    if max(picture.size) <= max(size):
        return picture
    return picture.resize(size, Image.Resampling.BICUBIC)


def picture_size(geometry: Geometry) -> tuple[int, int]:
    """Give width and height of a rendered picture: the source's, or less if that is large."""
    shrink = min(1.0, MAX_PICTURE_SIDE / max(geometry.width, geometry.height))
    return max(1, round(geometry.width * shrink)), max(1, round(geometry.height * shrink))


def viridis(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Colour values (...) in [0, 1]: (..., 3) RGB."""
    steps = np.linspace(0.0, 1.0, len(VIRIDIS))
    channels = [np.interp(values, steps, VIRIDIS[:, channel]) for channel in range(3)]
    return np.rint(np.stack(channels, axis=-1)).astype(np.uint8)


def _rows(attention: NDArray[np.float32], query_cell: QueryCell) -> NDArray[np.float32]:
    """Pick the queries that were asked for: (A, L), or (A, L, L) for all."""
    if query_cell == "all":
        return attention
    rows: NDArray[np.float32] = (
        attention.mean(axis=1) if query_cell is None else attention[:, query_cell]
    )
    return rows


def _heat_on_picture(
    weights: NDArray[np.float32], geometry: Geometry, side: int
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Lay a map over the picture, stretched to [0, 1]: the heat, and where the model looked."""
    width, height = picture_size(geometry)
    # Sampling positions in cells of the map, from the centres of the picture's pixels.
    x = (np.arange(width) + 0.5) * geometry.width / width
    y = (np.arange(height) + 0.5) * geometry.height / height
    rows, columns = weights.shape
    column = (x - geometry.left) / geometry.scale_x * columns / side
    row = (y - geometry.top) / geometry.scale_y * rows / side
    seen = ((row >= 0) & (row < rows))[:, None] & ((column >= 0) & (column < columns))[None, :]
    heat = _spline_weights(row, rows) @ weights @ _spline_weights(column, columns).T
    low, high = float(heat.min()), float(heat.max())
    return ((heat - low) / max(high - low, 1e-12)).astype(np.float32), seen


def _spline_weights(positions: NDArray[np.float64], cells: int) -> NDArray[np.float64]:
    """Give the (N, cells) matrix that draws a smooth cubic B-spline over the centres of cells."""
    distance = np.abs(np.clip(positions - 0.5, 0, cells - 1)[:, None] - np.arange(cells))
    near = 2 / 3 - distance**2 + distance**3 / 2
    far = np.maximum(2 - distance, 0.0) ** 3 / 6
    weights = np.where(distance < 1, near, far)
    normed: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normed


def _png(image: Image.Image) -> bytes:
    """Write a PNG; the lowest compression is several times faster and a little larger."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()

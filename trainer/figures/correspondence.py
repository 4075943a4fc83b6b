"""Which region of one picture is which of another: lines between two squares, coloured by cosine.

Shapes: L regions of a square grid, C features.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from esvit.correspondence import match
from service.attention import viridis
from trainer.figures.page import GREY, MARGIN, Page

_BETWEEN = 72
"""Pixels between the two pictures."""

_HEADLINE, _LEGEND = 34, 40
_BAR = (120.0, 8.0)


class Lines(NamedTuple):
    """Pairs of regions, the most similar last, so that they are drawn on top.

    Attributes:
        source: (K,) regions of the first picture.
        target: (K,) regions of the second.
        scores: (K,) cosines.
    """

    source: NDArray[np.int64]
    target: NDArray[np.int64]
    scores: NDArray[np.float32]


def choose_lines(source: Tensor, target: Tensor, *, top_k: int, mutual_only: bool) -> Lines:
    """Choose the most similar pairs of regions (1, L, C) of two pictures."""
    found = match(source, target)
    indices, scores, is_mutual = (column[0].numpy() for column in found)
    kept = np.flatnonzero(is_mutual) if mutual_only else np.arange(len(scores))
    best = kept[np.argsort(-scores[kept], kind="stable")[:top_k]][::-1]
    return Lines(best, indices[best], scores[best])


def count_mirrored(lines: Lines, side: int) -> int:
    """Count the pairs that join a region with exactly its mirror place, `side` regions a row."""
    mirrored = lines.source // side * side + (side - 1 - lines.source % side)
    return int((lines.target == mirrored).sum())


def draw_lines(
    pictures: tuple[Image.Image, Image.Image], lines: Lines, num_regions: int, note: str
) -> Image.Image:
    """Draw two square pictures and the lines between them.

    Args:
        pictures: Of equal size.
        lines: What joins them.
        num_regions: L.
        note: What is to be said of them.
    """
    panel = pictures[0].width
    width = 2 * MARGIN + 2 * panel + _BETWEEN
    top = MARGIN + _HEADLINE
    page = Page(width, top + panel + _LEGEND + MARGIN)
    page.text((MARGIN, MARGIN), "Corresponding regions", size=17)
    page.text((width - MARGIN, MARGIN + 4), note, colour=GREY, anchor="rt")
    corners = (MARGIN, MARGIN + panel + _BETWEEN)
    for left, picture in zip(corners, pictures, strict=True):
        page.picture(picture, (left, top), panel)
    colours = viridis(_shares(lines.scores))
    rows = math.isqrt(num_regions)
    cell = panel / rows
    for source, target, colour in zip(lines.source, lines.target, colours, strict=True):
        (x, y), end = (
            (left + (region % rows + 0.5) * cell, top + (region // rows + 0.5) * cell)
            for left, region in zip(corners, (source, target), strict=True)
        )
        # Lines of one row hang differently, by their column, and so do not cover each other.
        bow = ((source % rows + 0.5) / rows - 0.5) * 0.9 * cell
        red, green, blue = (int(channel) for channel in colour)
        page.curve((x, y), end, bow=bow, colour=(red, green, blue))
        for at in ((x, y), end):
            page.dot(at, 3.5, (red, green, blue))
    if len(lines.scores):
        _draw_legend(page, (MARGIN, top + panel + 18), lines.scores)
    return page.finish()


def _shares(scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """Bring scores to [0, 1], the lowest to 0 and the highest to 1."""
    low, high = scores.min(initial=1.0), scores.max(initial=-1.0)
    shares: NDArray[np.float32] = (scores - low) / max(float(high - low), 1e-6)
    return shares


def _draw_legend(page: Page, corner: tuple[float, float], scores: NDArray[np.float32]) -> None:
    """Draw which colour is which cosine."""
    x, y = corner
    page.text((x, y), "cosine", colour=GREY)
    page.text((x + 52, y), f"{scores.min():.2f}", colour=GREY)
    page.bar((x + 90, y + 2), _BAR, viridis(np.linspace(0, 1, 64, dtype=np.float32)))
    page.text((x + 98 + _BAR[0], y), f"{scores.max():.2f}", colour=GREY)

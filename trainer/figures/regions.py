"""What the regions of pictures have in common, as colour: their three principal components.

Pictures that are drawn together share one basis, so equal colours mean equal features.

Shapes: N pictures, L regions of a square grid, C features.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.figures.page import GAP, GREY, LINE, MARGIN, Page, wrap
from trainer.figures.seen import Seen

_HEADLINE = 34
_TAILS = (2, 98)
"""Percentiles that become 0 and 255; what lies beyond them is cut."""


class Components(NamedTuple):
    """Regions by their principal components.

    Attributes:
        colours: (N, L, 3) in [0, 1], the first component red, then green, then blue.
        explained: Share of all regions' variance, 0 to 1, that the three hold.
    """

    colours: NDArray[np.float64]
    explained: float


def principal_components(regions: NDArray[np.float32]) -> Components:
    """Find the basis of all regions (N, L, C) of all pictures together."""
    N, L, C = regions.shape
    centred = regions.reshape(N * L, C).astype(np.float64)
    centred -= centred.mean(axis=0)
    scores, singular, directions = np.linalg.svd(centred, full_matrices=False)
    scores = scores * singular
    found = np.zeros((N * L, 3))
    found[:, : min(3, len(singular))] = scores[:, :3] * _signs(directions[:3])
    variance = singular**2
    explained = float(variance[:3].sum() / max(float(variance.sum()), 1e-12))
    return Components(_stretch(found).reshape(N, L, 3), explained)


def draw_regions(seen: list[Seen], regions: NDArray[np.float32]) -> Image.Image:
    """Draw pictures side by side, and their regions (N, L, C) as colours below."""
    panel = seen[0].shown.width
    components = principal_components(regions)
    rows = math.isqrt(regions.shape[1])
    inner = len(seen) * panel + (len(seen) - 1) * GAP
    words = wrap(f"3 principal components, {components.explained:.0%} of the variance", inner)
    top = MARGIN + _HEADLINE
    below = top + 2 * panel + GAP
    page = Page(2 * MARGIN + inner, below + len(words) * LINE + MARGIN)
    page.text((MARGIN, MARGIN), "Regions as colours", size=17)
    for number, picture in enumerate(seen):
        left = MARGIN + number * (panel + GAP)
        page.picture(picture.shown, (left, top), panel)
        cells = (components.colours[number].reshape(rows, rows, 3) * 255).round().astype(np.uint8)
        large = Image.fromarray(cells).resize((panel, panel), Image.Resampling.NEAREST)
        page.picture(large, (left, top + panel + GAP), panel)
    for number, line in enumerate(words):
        page.text((MARGIN, below + 8 + number * LINE), line, colour=GREY)
    return page.finish()


def _signs(directions: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give each direction (K, C) the sign that makes its largest number positive."""
    largest = np.abs(directions).argmax(axis=1)
    signs: NDArray[np.float64] = np.sign(directions[np.arange(len(directions)), largest])
    return signs


def _stretch(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bring each component (M, 3) to [0, 1]; one without spread lies in the middle."""
    low, high = np.percentile(scores, _TAILS, axis=0)
    spread = high - low
    stretched = (scores - low) / np.where(spread > 1e-9, spread, 1.0)
    flat: NDArray[np.float64] = np.where(spread > 1e-9, stretched, 0.5).clip(0.0, 1.0)
    return flat

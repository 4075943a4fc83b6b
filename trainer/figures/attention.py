"""What each head of the last block attends to, heads from the most focused to the most even.

As in EsViT's figures: one region asks; below each map, the fewest regions that hold 60 % of its
attention.

Shapes: A heads, R rows and columns of the grid, L = R * R regions.
"""

import math

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.attention import viridis
from trainer.figures.page import GAP, GREY, LINE, MARGIN, Colour, Page, wrap
from trainer.figures.seen import Seen

MASS = 0.6
"""Share of a head's attention that its mask holds."""

ASKING: Colour = (255, 92, 57)
"""Of the dot on the region that asks."""

_TITLE = 25
_FADED = 0.22
"""How much of the picture is left outside a mask."""


def entropies(weights: NDArray[np.float32]) -> NDArray[np.float64]:
    """Give each head's entropy in nats: (A,) from (A, L) weights, made to sum to one."""
    shares = weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12)
    logs = np.log(np.maximum(shares, 1e-12))
    found: NDArray[np.float64] = -(shares * logs).sum(axis=1, dtype=np.float64)
    return found


def mass_mask(weights: NDArray[np.float32], mass: float = MASS) -> NDArray[np.bool_]:
    """Mark the fewest of L regions that hold so much of the sum of their weights (L,)."""
    order = np.argsort(-weights, kind="stable")
    held = np.cumsum(weights[order], dtype=np.float64)
    count = int(np.searchsorted(held, mass * held[-1] * (1 - 1e-6))) + 1
    mask = np.zeros(len(weights), bool)
    mask[order[:count]] = True
    return mask


def choose_heads(entropy: NDArray[np.float64], count: int) -> NDArray[np.intp]:
    """Choose heads in the order of their entropy, evenly from the first to the last."""
    order = np.argsort(entropy, kind="stable")
    if count >= len(order):
        return order
    return order[np.linspace(0, len(order) - 1, count).round().astype(np.intp)]


def draw_attention(
    seen: list[Seen],
    weights: list[NDArray[np.float32]],
    asking: list[tuple[float, float] | None],
    num_heads: int,
) -> Image.Image:
    """Draw a picture's maps beside it, and the next picture's below.

    Args:
        seen: N pictures.
        weights: Of each the (A, L) attention of all heads.
        asking: Of each the position x, y of the region that asks, in shares of the square; None
            where the mean over all regions is shown.
        num_heads: How many heads are shown.
    """
    panel = seen[0].shown.width
    A = len(weights[0])
    num_seen = max(int((some > 0).any(axis=0).sum()) for some in weights)
    shown = min(num_heads, A)
    block = LINE + 2 * panel + GAP
    inner = (1 + shown) * panel + shown * GAP
    legend = wrap(
        f"{shown} of {A} heads, from focused to even, with their entropy in nats, at most "
        f"{math.log(num_seen):.2f}. Below: the fewest of {num_seen} regions that hold "
        f"{MASS:.0%}; at the left the mean of all heads.",
        inner,
    )
    head = MARGIN + _TITLE + len(legend) * LINE + GAP
    page = Page(2 * MARGIN + inner, head + len(seen) * (block + 2 * GAP) - 2 * GAP + MARGIN)
    page.text((MARGIN, MARGIN), "Attention of the last block", size=17)
    for number, line in enumerate(legend):
        page.text((MARGIN, MARGIN + _TITLE + number * LINE), line, colour=GREY)
    for number, picture in enumerate(seen):
        top = head + number * (block + 2 * GAP)
        _draw_block(page, picture, weights[number], asking[number], num_heads, top)
    return page.finish()


def _draw_block(
    page: Page,
    seen: Seen,
    weights: NDArray[np.float32],
    asking: tuple[float, float] | None,
    num_heads: int,
    top: float,
) -> None:
    """Draw one picture and its heads."""
    panel = seen.shown.width
    entropy = entropies(weights)
    upper, lower = top + LINE, top + LINE + panel + GAP
    asked = "mean over all regions" if asking is None else "the region that asks"
    if len(wrap(asked, panel)) == 1:  # else it would run into the first head's name
        page.text((MARGIN, top), asked, colour=GREY)
    _draw_with_dot(page, seen.shown, (MARGIN, upper), asking)
    _draw_with_dot(page, overlay(seen.shown, weights.mean(axis=0)), (MARGIN, lower), asking)
    for column, head in enumerate(choose_heads(entropy, num_heads), 1):
        left = MARGIN + column * (panel + GAP)
        page.text((left, top), f"head {head}")
        page.text((left + panel, top), f"{entropy[head]:.2f}", colour=GREY, anchor="rt")
        _draw_with_dot(page, overlay(seen.shown, weights[head]), (left, upper), asking)
        page.picture(fade(seen.shown, mass_mask(weights[head])), (left, lower), panel)


def _draw_with_dot(
    page: Page, image: Image.Image, corner: tuple[float, float], dot: tuple[float, float] | None
) -> None:
    """Draw a square picture, and the dot on it."""
    page.picture(image, corner, image.width)
    if dot is not None:
        page.dot((corner[0] + dot[0] * image.width, corner[1] + dot[1] * image.width), 4, ASKING)


def overlay(image: Image.Image, weights: NDArray[np.float32]) -> Image.Image:
    """Lay weights (L,) over a square picture, coloured from zero to the largest."""
    rows = math.isqrt(len(weights))
    cells = Image.fromarray((weights / max(float(weights.max()), 1e-12)).reshape(rows, rows))
    heat = np.asarray(cells.resize(image.size, Image.Resampling.BICUBIC)).clip(0.0, 1.0)[..., None]
    grey = np.asarray(image.convert("L"), np.float32)[..., None]
    opacity = 0.25 + 0.55 * heat
    mixed = grey * (1 - opacity) + viridis(heat[..., 0]) * opacity
    return Image.fromarray(mixed.round().astype(np.uint8))


def fade(image: Image.Image, mask: NDArray[np.bool_]) -> Image.Image:
    """Let a square picture pale but for the regions of a mask (L,)."""
    rows = math.isqrt(len(mask))
    cells = Image.fromarray(np.where(mask, 255, 0).astype(np.uint8).reshape(rows, rows))
    large = cells.resize(image.size, Image.Resampling.NEAREST)
    grey = image.convert("L").convert("RGB")
    pale = Image.blend(Image.new("RGB", image.size, "white"), grey, _FADED)
    return Image.composite(image, pale, large)

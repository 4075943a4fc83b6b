"""Colour jitter, grey, blur, solarize and normalisation of many views at once.

Every operation takes a batch and one parameter a view, so the same code runs in a loader's worker
on the few views of one image and on the training device on the views of a whole batch. It keeps
Pillow's arithmetic, with which the published augmentation was made: whole grey levels after each
operation (cut off, not rounded, where Pillow cuts off) and Pillow's blur, which is three box
filters; only the hue is exact here where Pillow's has 256 steps. Written out in place
on float32 it is several times faster on a CPU than Pillow or `transforms.v2.functional`.

Shapes: N views, (N, 3, H, W), float32 grey levels 0 to 255 inside, uint8 outside.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Numbers of the jitter's operations in `PixelParameters.order` and columns of its factors."""

MAX_BLUR_RADIUS = 2.0
"""Largest standard deviation of the blur in pixels; the filter's length follows from it."""

_REACH = 6
_BLOCK = 32
_WINDOW = _BLOCK + 2 * _REACH
_LUMA = (0.299, 0.587, 0.114)

Change = Callable[[Tensor, Tensor], None]
"""Changes (N, 3, H, W) levels in place by (N,) amounts or (N, 13) kernels."""


class PixelParameters(NamedTuple):
    """What is done to each of N views; on the CPU, wherever the pixels are.

    Attributes:
        order: (N, 4) int8, the jitter's operations in the order they are applied; -1 for none.
        factors: (N, 4) float32, by operation: three enhancement factors (1 changes nothing) and
            the shift of the hue in turns, -1/3 to 1/3.
        grey: (N,) bool, whether colour is taken away.
        blur: (N, 13) float32, kernel of the blur (`blur_kernels`), zeros for none.
        solarize: (N,) bool, whether levels of 128 and more are inverted.
    """

    order: Tensor
    factors: Tensor
    grey: Tensor
    blur: Tensor
    solarize: Tensor

    def rows(self, chosen: slice) -> "PixelParameters":
        """Give the parameters of some of the views."""
        return PixelParameters(*(column[chosen] for column in self))


def alter_pixels(pixels: Tensor, parameters: PixelParameters) -> Tensor:
    """Apply jitter, grey, blur and solarize, each view with its own parameters.

    Args:
        pixels: (N, 3, H, W) uint8 on any device.
        parameters: N rows on the CPU; nothing here waits for the device.

    Returns:
        (N, 3, H, W) uint8, contiguous.
    """
    if pixels.dtype != torch.uint8:
        raise ValueError(f"pixels are {pixels.dtype}, expected uint8")
    levels = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    adjusts = (adjust_brightness_, adjust_contrast_, adjust_saturation_, adjust_hue_)
    for turn in zip(*parameters.order.tolist(), strict=True):  # N operations
        for operation in sorted(set(turn) - {-1}):
            rows = [row for row, chosen in enumerate(turn) if chosen == operation]
            _change_(levels, rows, adjusts[operation], parameters.factors[:, operation])
    _change_(levels, _rows(parameters.grey), take_colour_away_, parameters.grey)
    _change_(levels, _rows(parameters.blur.any(1)), blur_, parameters.blur)
    _change_(levels, _rows(parameters.solarize), solarize_, parameters.solarize)
    return levels.to(torch.uint8)


def normalize(pixels: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Scale (N, 3, H, W) uint8 to [0, 1], subtract the mean and divide by std, per channel."""
    scale = _constants(tuple(1 / (255 * s) for s in std), pixels.device)
    shift = _constants(tuple(-m / s for m, s in zip(mean, std, strict=True)), pixels.device)
    return torch.addcmul(shift, pixels.float(), scale)


@cache
def _constants(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Give a number a channel, (C, 1, 1), made once: to bring it to a device waits for that."""
    return torch.tensor(values, device=device)[:, None, None]


def adjust_brightness_(levels: Tensor, amount: Tensor) -> None:
    """Blend (N, 3, H, W) with black; amount (N,), 1 changes nothing."""
    levels.mul_(_column(amount)).clamp_(0, 255).floor_()


def adjust_contrast_(levels: Tensor, amount: Tensor) -> None:
    """Blend (N, 3, H, W) with each view's mean luminance; amount (N,)."""
    mean = _luminance(levels).mean(dim=(1, 2)).add_(0.5).floor_()
    _blend_(levels, _column(mean), amount)


def adjust_saturation_(levels: Tensor, amount: Tensor) -> None:
    """Blend (N, 3, H, W) with each pixel's luminance; amount (N,)."""
    _blend_(levels, _luminance(levels)[:, None], amount)


def adjust_hue_(levels: Tensor, amount: Tensor) -> None:
    """Turn the hue of (N, 3, H, W) in HSV by amount (N,) turns, at most a third either way.

    With M the largest and m the smallest channel, the distance in sixths of a turn between a
    colour's hue and red is 1 + (G + B - R - m) / (M - m), its side is the sign of G - B, and a
    channel whose own hue is d away has the value m + (M - m) * clamp(2 - d, 0, 1). So no choice by
    sextant is needed, which on a CPU costs more than all the arithmetic.
    """
    red, green, blue = levels.unbind(1)
    largest = torch.maximum(torch.maximum(red, green), blue)
    smallest = torch.minimum(torch.minimum(red, green), blue)
    chroma = largest.sub_(smallest)
    per_chroma = chroma.clamp(min=1e-6).reciprocal_()
    from_red = (green + blue).sub_(red).sub_(smallest).mul_(per_chroma).add_(1.0)
    hue = torch.copysign(from_red, green - blue).add_(6.0 * amount[:, None, None])
    own_hues = _constants((0.0, 2.0, -2.0), levels.device)
    # |hue - own| reaches 7; folded at 3 and cut off, d and 6 - d give the same share.
    share = (hue[:, None] - own_hues).abs_().sub_(3.0).abs_().sub_(1.0).clamp_(0.0, 1.0)
    torch.addcmul(smallest[:, None], chroma[:, None], share, out=levels).round_()


def take_colour_away_(levels: Tensor, _amount: Tensor) -> None:
    """Replace the three channels of (N, 3, H, W) by the luminance."""
    levels.copy_(_luminance(levels)[:, None])


def solarize_(levels: Tensor, _amount: Tensor) -> None:
    """Invert levels of 128 and more; of whole levels that is the smaller of x and 255 - x."""
    torch.minimum(levels, 255.0 - levels, out=levels)


def blur_(levels: Tensor, kernels: Tensor) -> None:
    """Blur (N, 3, H, W) as Pillow's GaussianBlur does, edges repeated; kernels (N, 13).

    Each axis is filtered by products of blocks of 32 pixels and their neighbours with a small
    banded matrix: a matmul is the fastest filter that a CPU has, and a GPU too.
    """
    N, C, H, W = levels.shape
    band = _band(kernels)
    padded = functional.pad(levels, (_REACH, _REACH + -W % _BLOCK, 0, 0), mode="replicate")
    blocks = padded.reshape(N, C * H, -1).unfold(2, _WINDOW, _BLOCK).transpose(1, 2)
    across = (blocks @ band[:, None]).view(N, -1, C, H, _BLOCK)
    # Rows first, so that the blocks of rows are matrices in memory and need no copy.
    rows = across.permute(0, 3, 2, 1, 4).reshape(N, 1, H, -1)
    padded = functional.pad(rows, (0, 0, _REACH, _REACH + -H % _BLOCK), mode="replicate")
    blocks = padded[:, 0].unfold(1, _WINDOW, _BLOCK).transpose(2, 3)
    down = (band.transpose(1, 2)[:, None] @ blocks).view(N, -1, C, rows.shape[3] // C)
    torch.round(down[:, :H, :, :W].transpose(1, 2), out=levels)


def blur_kernels(radius: NDArray[np.float64]) -> NDArray[np.float32]:
    """Give Pillow's approximation of a Gaussian: three equal box filters of broken width.

    The box has a third of the Gaussian's variance; its two outer taps carry what is left over of
    a whole width (Gwosdek et al., "Theoretical Foundations of Gaussian Convolution by Extended Box
    Filtering", 2011).

    Args:
        radius: (N,) standard deviations in pixels, up to 2; 0 for none.

    Returns:
        (N, 13) weights that sum to one, zeros where the radius is 0.
    """
    if radius.max() > MAX_BLUR_RADIUS:
        raise ValueError(f"blur radius is {radius.max()}, expected at most {MAX_BLUR_RADIUS}")
    variance = radius[:, None] ** 2 / 3
    whole = np.floor((np.sqrt(12 * variance + 1) - 1) / 2)
    rest = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance)
    rest /= 6 * (variance - (whole + 1) ** 2)
    taps = np.abs(np.arange(-2, 3))
    box = (taps <= whole) + rest * (taps == whole + 1)
    spectrum = np.fft.rfft(box / box.sum(1, keepdims=True), n=16)
    kernels = np.fft.irfft(spectrum**3, n=16)[:, : 2 * _REACH + 1]
    return np.where(radius[:, None] > 0, kernels, 0).astype(np.float32)


def _band(kernels: Tensor) -> Tensor:
    """Lay (N, 13) kernels on the diagonals of (N, 44, 32) matrices."""
    N, taps = kernels.shape
    band = kernels.new_zeros(N, _WINDOW, _BLOCK)
    diagonals = band.as_strided((N, _BLOCK, taps), (_WINDOW * _BLOCK, _BLOCK + 1, _BLOCK))
    diagonals.copy_(kernels[:, None])
    return band


def _rows(chosen: Tensor) -> list[int]:
    """Give the numbers of the true ones of (N,) on the host."""
    return [row for row, choice in enumerate(chosen.tolist()) if choice]


def _change_(levels: Tensor, rows: list[int], change_: Change, amounts: Tensor) -> None:
    """Change some of N views in place; which they are is known on the host, so nothing waits."""
    if len(rows) == len(levels):
        change_(levels, amounts.to(levels.device, non_blocking=True))
    elif rows:
        chosen = torch.tensor(rows)
        amount = amounts[chosen].to(levels.device, non_blocking=True)
        on_device = chosen.to(levels.device, non_blocking=True)
        part = levels.index_select(0, on_device)
        change_(part, amount)
        levels.index_copy_(0, on_device, part)


def _luminance(levels: Tensor) -> Tensor:
    """Give (N, H, W) whole grey levels of (N, 3, H, W), weighted as in ITU-R 601."""
    red, green, blue = levels.unbind(1)
    weighted = (red * _LUMA[0]).add_(green, alpha=_LUMA[1]).add_(blue, alpha=_LUMA[2])
    return weighted.round_()


def _blend_(levels: Tensor, base: Tensor, amount: Tensor) -> None:
    """Go from base towards levels by amount (N,), beyond them if over 1; cut off as Pillow does."""
    levels.sub_(base).mul_(_column(amount)).add_(base).clamp_(0, 255).floor_()


def _column(amount: Tensor) -> Tensor:
    """Lay (N,) along the views of (N, C, H, W)."""
    return amount[:, None, None, None]

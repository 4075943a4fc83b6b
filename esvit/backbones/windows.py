"""Window geometry without parameters: which position goes into which window, and who sees whom.

Cutting a map into shifted, padded windows is a permutation of its positions with some empty slots.
The permutation is worked out once for each size and device and kept, so that a forward pass moves
every position exactly once, by index, instead of padding, rolling and transposing the map.

Shape letters: B batch, H W height and width of a map, C channels, M window side, N windows a map.
"""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit.native import windows as native

NOT_ADJACENT = -10_000.0
"""Added to scores between positions that only the shift brought together.

The published value is -100, whose exponential is no zero but a subnormal number, and a processor
multiplies those a hundred times slower. Results are the same float32 numbers as long as scores of
a row lie less than 80 apart.
"""

Key = TypeVar("Key", bound=Hashable)
Table = TypeVar("Table")

MUCH_PADDING = 2.0
"""Slots of all windows for each position of the map, from which on padding is not multiplied.

With less of it the products that are spared pay for what is moved in its place, no more: queries,
keys and values instead of what they are made of. A view of 96 px has 5.4 in its last stage, and
with windows of 14 in the last but one as well."""

_MAX_TABLES = 256
_layouts: dict[tuple["Windows", int, int, torch.device], "Layout"] = {}


class Windows(NamedTuple):
    """How a block cuts its map.

    Attributes:
        side: Window side M.
        shift: By how many positions the map is rolled up and left before it is cut.
        mask_padding: Whether padding is hidden from attention.
    """

    side: int
    shift: int = 0
    mask_padding: bool = False


class Layout(NamedTuple):
    """Where the positions of one map size go.

    Attributes:
        slots: (N, M * M) int64, the map position in each slot of each window; H * W is padding.
        positions: (H * W,) int64, the slot of each map position, counted through all windows.
        padding: (P,) int64, the slots that are padding, counted likewise.
        mask: (N, 1, M * M, M * M) added to the scores, or None where all of a window see all.
        is_one_window: Whether the map is one window as it is, so that nothing has to move.
    """

    slots: Tensor
    positions: Tensor
    padding: Tensor
    mask: Tensor | None
    is_one_window: bool

    @property
    def has_much_padding(self) -> bool:
        """Whether what positions need should be worked out before windows are cut."""
        return is_much_padding(self.slots.numel(), len(self.positions))


def is_much_padding(num_slots: int, num_positions: int) -> bool:
    """Whether windows have so many slots that their padding should not be multiplied."""
    return num_slots >= MUCH_PADDING * num_positions


def layout_of(windows: Windows, H: int, W: int, device: torch.device) -> Layout:
    """Give the layout of an (H, W) map: computed at the first call, remembered for the next."""
    make = partial(_new_layout, windows, H, W, device)
    return remembered(_layouts, (windows, H, W, device), make)


def remembered(known: dict[Key, Table], key: Key, make: Callable[[], Table]) -> Table:
    """Give what `known` holds under a key; make it at the first call and keep it there."""
    if key in known:
        return known[key]
    if torch.compiler.is_compiling():  # a traced tensor must not outlive its trace
        return make()
    if len(known) >= _MAX_TABLES:
        known.pop(next(iter(known)))
    with torch.inference_mode(False):  # an inference tensor could not be used in training later
        known[key] = make()
    return known[key]


def to_windows(x: Tensor, layout: Layout, padding: Tensor | None = None) -> Tensor:
    """Cut maps into windows, image by image.

    Args:
        x: (B, H, W, C).
        layout: Of maps of this size.
        padding: (C,), what padding is; zero if not given.

    Returns:
        (B * N, M * M, C).
    """
    B, H, W, C = x.shape
    x = x.reshape(B, H * W, C)
    if padding is not None:
        # torch leaves `apply` untyped.
        x = _MoveAndPad.apply(x, padding, layout)  # type: ignore[no-untyped-call]
    elif not layout.is_one_window:
        x = _move(x, layout.slots.flatten(), layout.positions)
    return x.reshape(-1, layout.slots.shape[1], C)


def from_windows(x: Tensor, layout: Layout, H: int, W: int) -> Tensor:
    """Put windows (B * N, M * M, C) together to maps (B, H, W, C); undoes `to_windows`."""
    C = x.shape[-1]
    x = x.reshape(-1, layout.slots.numel(), C)
    if not layout.is_one_window:
        x = _move(x, layout.positions, layout.slots.flatten())
    return x.reshape(-1, H, W, C)


def between_positions(weights: Tensor, layout: Layout) -> Tensor:
    """Spread attention inside windows to attention between all positions of a map.

    Args:
        weights: (B * N, heads, M * M, M * M) attention of each slot to each slot of its window.
        layout: The layout that cut the map.

    Returns:
        (B, heads, H * W, H * W), zero across windows; what goes to padding is left out.
    """
    num_windows, area = layout.slots.shape
    heads = weights.shape[1]
    if layout.is_one_window:
        return weights
    window, slot = layout.positions // area, layout.positions % area
    weights = weights.reshape(-1, num_windows, heads, area, area).transpose(1, 2)
    spread = weights[:, :, window[:, None], slot[:, None], slot[None, :]]
    return spread * (window[:, None] == window[None, :])


def relative_position_index(side: int) -> Tensor:
    """Number the offsets between the positions of a window (Swin, section 3.2).

    Returns:
        (M * M, M * M) int64 rows of a table of (2 M - 1)^2 offsets, row by row of the offset
        query minus key.
    """
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    y, x = y.flatten(), x.flatten()
    dy = y[:, None] - y[None, :] + side - 1
    dx = x[:, None] - x[None, :] + side - 1
    return dy * (2 * side - 1) + dx


def _new_layout(windows: Windows, H: int, W: int, device: torch.device) -> Layout:
    """Work out a layout."""
    M, shift, _ = windows
    bottom, right = -H % M, -W % M
    numbers = torch.arange(H * W).view(H, W)
    numbers = F.pad(numbers, (0, right, 0, bottom), value=H * W)
    slots = _cut(numbers.roll((-shift, -shift), (0, 1)), M)
    order = slots.flatten().argsort(stable=True)
    positions, padding = order[: H * W], order[H * W :]
    mask = _mask(windows, H + bottom, W + right, slots == H * W)
    is_one_window = slots.shape[0] == 1 and not (bottom or right or shift)
    return Layout(
        slots=slots.to(device),
        positions=positions.to(device),
        padding=padding.to(device),
        mask=None if mask is None else mask.to(device),
        is_one_window=is_one_window,
    )


def _mask(windows: Windows, H: int, W: int, is_padding: Tensor) -> Tensor | None:
    """Make the additive mask of a padded (H, W) map, or None if it would be all zero."""
    M, shift, mask_padding = windows
    mask = torch.zeros(is_padding.shape[0], M * M, M * M)
    if shift:
        areas = _cut(3 * _bands(H, M, shift)[:, None] + _bands(W, M, shift)[None, :], M)
        mask = mask.masked_fill(areas[:, :, None] != areas[:, None, :], NOT_ADJACENT)
    if mask_padding:
        mask = mask.masked_fill(is_padding[:, None, :], -torch.inf)
    return mask[:, None] if shift or (mask_padding and is_padding.any()) else None


def _bands(length: int, side: int, shift: int) -> Tensor:
    """Number the stretches of a rolled axis that were adjacent before: (length,), 0 to 2."""
    at = torch.arange(length)
    return (at >= length - side).long() + (at >= length - shift).long()


def _cut(grid: Tensor, side: int) -> Tensor:
    """Cut an (H, W) grid into windows (N, M * M), row by row."""
    H, W = grid.shape
    grid = grid.view(H // side, side, W // side, side).transpose(1, 2)
    return grid.reshape(-1, side * side)


def take(x: Tensor, index: Tensor, out: Tensor | None = None) -> Tensor:
    """Take rows of x (B, L, C) by an index of any length; L stands for a row of zeros.

    It has a gradient unless it is written to `out`.
    """
    if out is not None and native.can_take(x, index, out):
        native.take(x, index, out)
        return out
    if index.shape[0] > x.shape[1]:
        x = F.pad(x, (0, 0, 0, 1))
    return torch.index_select(x, 1, index, out=out)


class _Move(torch.autograd.Function):
    """Rows moved by index; the gradient moves back by the inverse index, without scattering."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:  # ctx is torch's
        ctx.save_for_backward(index, inverse)
        return take(x, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:  # ctx is torch's
        _, inverse = ctx.saved_tensors
        return take(grads[0], inverse), None, None


class _MoveAndPad(torch.autograd.Function):
    """As `_Move`, with a row of its own for padding, whose gradient is the sum over all of it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, row: Tensor, layout: Layout) -> Tensor:  # ctx is torch's
        ctx.layout, ctx.dtype = layout, row.dtype
        rows = row.to(x.dtype).expand(len(x), 1, -1)
        return torch.cat([x, rows], dim=1).index_select(1, layout.slots.flatten())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:  # ctx is torch's
        (grad,) = grads
        of_slots = grad.sum(0, dtype=torch.promote_types(grad.dtype, torch.float32))
        of_row = of_slots.index_select(0, ctx.layout.padding).sum(0)
        return grad.index_select(1, ctx.layout.positions), of_row.to(ctx.dtype), None


def _move(x: Tensor, index: Tensor, inverse: Tensor) -> Tensor:
    """Move rows of x (B, L, C) to where index says; inverse moves them back."""
    if torch.is_grad_enabled() and x.requires_grad:
        moved: Tensor = _Move.apply(x, index, inverse)  # type: ignore[no-untyped-call]  # torch's
        return moved
    return take(x, index)

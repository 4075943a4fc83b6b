"""Maps of several sizes in one tensor of rows, and windows cut from all of them.

What a network does with each position alone, it then does once for all sizes: a weight is read and
copied once, its gradient comes from one product, and no gradient waits for that of another size.

Shape letters: R rows (the positions of all maps, size by size, image by image, row by row), S slots
of all their windows in the same order, C channels.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from esvit.backbones.windows import Layout, Windows, is_much_padding, layout_of, take


class MapSize(NamedTuple):
    """Some maps of one size.

    Attributes:
        number: How many, B.
        height: H of each.
        width: W of each.
    """

    number: int
    height: int
    width: int

    @property
    def rows(self) -> int:
        """Positions of all of them."""
        return self.number * self.height * self.width


class Part(NamedTuple):
    """Where the maps of one size lie.

    Attributes:
        size: Of the maps.
        layout: Of their windows.
        row_span: Theirs among R.
        slot_span: That of their windows among S.
    """

    size: MapSize
    layout: Layout
    row_span: slice
    slot_span: slice

    @property
    def num_windows(self) -> int:
        """Windows of all of them."""
        return self.size.number * len(self.layout.slots)

    def maps(self, x: Tensor) -> Tensor:
        """View their rows of (R, C) as (B, H * W, C)."""
        return x[self.row_span].view(self.size.number, len(self.layout.positions), x.shape[-1])

    def windows(self, x: Tensor) -> Tensor:
        """View their slots of (S, C) as (B, slots of a map, C)."""
        return x[self.slot_span].view(self.size.number, self.layout.slots.numel(), x.shape[-1])


def parts_of(windows: Windows, sizes: Sequence[MapSize], device: torch.device) -> tuple[Part, ...]:
    """Look up how maps of these sizes are cut."""
    parts, row, slot = [], 0, 0
    for size in sizes:
        layout = layout_of(windows, size.height, size.width, device)
        next_row, next_slot = row + size.rows, slot + size.number * layout.slots.numel()
        parts.append(Part(size, layout, slice(row, next_row), slice(slot, next_slot)))
        row, slot = next_row, next_slot
    return tuple(parts)


def have_much_padding(parts: Sequence[Part]) -> bool:
    """Whether what positions need should be worked out before windows are cut."""
    return is_much_padding(parts[-1].slot_span.stop, parts[-1].row_span.stop)


def split_maps(x: Tensor, sizes: Sequence[MapSize]) -> list[Tensor]:
    """View rows (R, C) as maps (B, H, W, C), one tensor for each size."""
    stops = accumulate(size.rows for size in sizes)
    return [
        x[stop - size.rows : stop].view(*size, x.shape[-1])
        for size, stop in zip(sizes, stops, strict=True)
    ]


def cut_windows(x: Tensor, parts: Sequence[Part], padding: Tensor | None = None) -> Tensor:
    """Put rows into the slots of windows; differentiable.

    Args:
        x: (R, C).
        parts: Of which the rows are made.
        padding: (C,), what padding is; zero if not given.

    Returns:
        (S, C).
    """
    # torch leaves `apply` untyped.
    cut: Tensor = _CutWindows.apply(x, padding, parts)  # type: ignore[no-untyped-call]
    return cut


def to_slots(x: Tensor, parts: Sequence[Part]) -> Tensor:
    """Put rows (R, C) into slots (S, C), zero where there is padding; without a gradient."""
    if _is_in_place(parts):
        return x
    out = x.new_empty(parts[-1].slot_span.stop, x.shape[-1])
    for part in parts:
        take(part.maps(x), part.layout.slots.flatten(), part.windows(out))
    return out


def to_rows(x: Tensor, parts: Sequence[Part]) -> Tensor:
    """Put slots (S, C) back into rows (R, C); without a gradient."""
    if _is_in_place(parts):
        return x
    out = x.new_empty(parts[-1].row_span.stop, x.shape[-1])
    for part in parts:
        fill_rows(out, part.windows(x), part)
    return out


def fill_rows(out: Tensor, windows: Tensor, part: Part) -> None:
    """Write the windows (B, slots of a map, C) of one size to where their rows lie in (R, C)."""
    take(windows, part.layout.positions, part.maps(out))


def _is_in_place(parts: Sequence[Part]) -> bool:
    """Whether every row is in its slot already."""
    return all(part.layout.is_one_window for part in parts)


class _CutWindows(torch.autograd.Function):
    """Rows moved by index; the gradient moves back by the inverse index, without scattering."""

    @staticmethod
    def forward(
        ctx: Any,  # torch gives contexts no public type
        x: Tensor,
        padding: Tensor | None,
        parts: Sequence[Part],
    ) -> Tensor:
        """Move them."""
        ctx.parts = parts
        ctx.dtype = None if padding is None else padding.dtype
        out = to_slots(x, parts)
        if padding is not None and not _is_in_place(parts):
            for part in parts:
                where = part.layout.padding
                rows = padding.to(x.dtype).expand(part.size.number, len(where), -1)
                part.windows(out).index_copy_(1, where, rows)
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # as above
        """Give the gradients."""
        if ctx.dtype is None:
            return to_rows(grad, ctx.parts), None, None
        exact = torch.promote_types(grad.dtype, torch.float32)
        of_padding = grad.new_zeros(grad.shape[-1], dtype=exact)
        for part in ctx.parts:
            of_slots = part.windows(grad).sum(0, dtype=exact)
            of_padding += of_slots.index_select(0, part.layout.padding).sum(0)
        return to_rows(grad, ctx.parts), of_padding.to(ctx.dtype), None

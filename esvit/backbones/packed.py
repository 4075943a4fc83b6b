"""Maps of several sizes in one tensor of rows, and windows cut from all of them.

What a network does with each position alone, it then does once for all sizes: a weight is read and
copied once, its gradient comes from one product, and no gradient waits for that of another size.

Shape letters: R rows (the positions of all maps, size by size, image by image, row by row), S slots
of all their windows in the same order, C channels.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from esvit.backbones.windows import MUCH_PADDING, Layout, Windows, layout_of, take


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
        rows: Theirs among R.
        slots: Those of their windows among S.
    """

    size: MapSize
    layout: Layout
    rows: slice
    slots: slice


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
    last = parts[-1]
    return bool(last.slots.stop >= MUCH_PADDING * last.rows.stop)


def split_maps(x: Tensor, sizes: Sequence[MapSize]) -> list[Tensor]:
    """View rows (R, C) as maps (B, H, W, C), one tensor for each size."""
    rows = torch.split(x, [size.rows for size in sizes])
    return [part.view(*size, -1) for part, size in zip(rows, sizes, strict=True)]


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
    out = x.new_empty(parts[-1].slots.stop, x.shape[-1])
    for size, layout, rows, slots in parts:
        shape = size.number, -1, x.shape[-1]
        take(x[rows].view(shape), layout.slots.flatten(), out[slots].view(shape))
    return out


def to_rows(x: Tensor, parts: Sequence[Part]) -> Tensor:
    """Put slots (S, C) back into rows (R, C); without a gradient."""
    if _is_in_place(parts):
        return x
    out = x.new_empty(parts[-1].rows.stop, x.shape[-1])
    for part in parts:
        fill_rows(out, x[part.slots], part)
    return out


def fill_rows(out: Tensor, x: Tensor, part: Part) -> None:
    """Write the slots of one size, as many of (S, C) as it has, to where its rows lie in (R, C)."""
    shape = part.size.number, -1, out.shape[-1]
    take(x.view(shape), part.layout.positions, out[part.rows].view(shape))


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
            for maps, layout in _slots_by_map(out, parts):
                shape = len(maps), len(layout.padding), -1
                maps.index_copy_(1, layout.padding, padding.to(x.dtype).expand(shape))
        return out.view_as(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # as above
        """Give the gradients."""
        if ctx.dtype is None:
            return to_rows(grad, ctx.parts), None, None
        exact = torch.promote_types(grad.dtype, torch.float32)
        of_padding = grad.new_zeros(grad.shape[-1], dtype=exact)
        for maps, layout in _slots_by_map(grad, ctx.parts):
            of_slots = maps.sum(0, dtype=exact)
            of_padding += of_slots.index_select(0, layout.padding).sum(0)
        return to_rows(grad, ctx.parts), of_padding.to(ctx.dtype), None


def _slots_by_map(x: Tensor, parts: Sequence[Part]) -> list[tuple[Tensor, Layout]]:
    """View slots (S, C) of each size as (B, slots of a map, C)."""
    C = x.shape[-1]
    return [(x[part.slots].view(part.size.number, -1, C), part.layout) for part in parts]

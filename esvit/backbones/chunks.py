"""Chunk geometry without parameters: which chunk sees which, and how far apart positions are.

A map is cut into chunks, which are windows that never shift; a chunk sees itself and its eight
neighbours (Vision Longformer, section 3.2). Neighbours are numbered row by row from the upper left,
the chunk itself being number 4.

Shape letters: H W height and width of a map, M chunk side, N chunks of a map, A = M * M.
"""

from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit.backbones.windows import Layout, Windows, layout_of, remembered

SELF = 4
"""Number of the chunk itself among its neighbours."""


class Chunks(NamedTuple):
    """How the chunks of one map size lie.

    Attributes:
        layout: Which position is in which slot of which chunk.
        neighbours: (N, 9) int64, the chunk in each direction; -1 where there is none.
        mask: (N, 9, A) to be added to the scores: 0 where a neighbour has a position in a slot,
            minus infinity elsewhere.
    """

    layout: Layout
    neighbours: Tensor
    mask: Tensor


_chunks: dict[tuple[int, int, int, torch.device], Chunks] = {}
_offsets: dict[tuple[int, int, int, torch.device], Tensor] = {}


def chunks_of(side: int, H: int, W: int, device: torch.device) -> Chunks:
    """Give the chunks of an (H, W) map: computed at the first call, remembered for the next."""
    make = partial(_new_chunks, side, H, W, device)
    return remembered(_chunks, (side, H, W, device), make)


def offsets_of(side: int, H: int, W: int, device: torch.device) -> Tensor:
    """Number the offsets between all positions of a map, no larger than two chunks either way.

    Returns:
        (H * W, H * W) int64 rows of a table as of `chunk_offsets`; remembered as chunks are.
    """
    make = partial(_new_offsets, side, H, W, device)
    return remembered(_offsets, (side, H, W, device), make)


def chunk_offsets(side: int) -> Tensor:
    """Number the offsets between the positions of a chunk and those of it and its neighbours.

    Returns:
        (A, 9 * A) int64 rows of a table of (4 M - 1)^2 offsets, row by row of the offset query
        minus key; keys lie neighbour by neighbour.
    """
    within = _positions(side, side)
    keys = [(within + side * (where - 1)) for where in _positions(3, 3)]
    return _rows(within, torch.cat(keys), side)


def _new_offsets(side: int, H: int, W: int, device: torch.device) -> Tensor:
    """Work out the offsets of a map."""
    positions = _positions(H, W)
    return _rows(positions, positions, side).to(device)


def _new_chunks(side: int, H: int, W: int, device: torch.device) -> Chunks:
    """Work out the chunks of a map."""
    layout = layout_of(Windows(side), H, W, device)
    rows, columns = -(-H // side), -(-W // side)
    numbers = torch.arange(rows * columns).view(rows, columns)
    around = F.pad(numbers, (1, 1, 1, 1), value=-1)
    around = around.unfold(0, 3, 1).unfold(1, 3, 1).reshape(-1, 9)
    is_there = (layout.slots.cpu() < H * W)[around] & (around >= 0)[..., None]
    mask = torch.zeros(is_there.shape).masked_fill(~is_there, -torch.inf)
    return Chunks(layout, around.to(device), mask.to(device))


def _rows(queries: Tensor, keys: Tensor, side: int) -> Tensor:
    """Number the offsets of positions (S, 2) to positions (T, 2): (S, T) rows of the table."""
    y, x = (queries[:, None] - keys[None, :] + 2 * side - 1).unbind(-1)
    return y * (4 * side - 1) + x


def _positions(rows: int, columns: int) -> Tensor:
    """List the row and column of every position of a map, row by row: (rows * columns, 2)."""
    return torch.cartesian_prod(torch.arange(rows), torch.arange(columns))

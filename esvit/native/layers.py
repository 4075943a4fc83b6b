"""Ways back through linear layers, by our kernels (`layers.cpp`, `turned_product.cpp`).

Shape letters: N rows, H hidden channels, C and D channels.
"""

import torch
from torch import Tensor

from esvit.native.library import address, has_tiles, kernel, takes

TILE = 32


def can_work_on(rows: Tensor) -> bool:
    """Whether the kernels take rows like these."""
    return takes(rows, torch.bfloat16)


def gelu_back_(grads: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Turn the gradients of gelu(hidden) into those of hidden, in place.

    Args:
        grads: (N, H) bfloat16.
        hidden: (N, H) bfloat16.

    Returns:
        gelu(hidden) (N, H), and the sums (H,) float32 of the new gradients.
    """
    activated = torch.empty_like(hidden)
    sums = _sums(hidden)
    kernel("esvit_gelu_back", "ppppnni")(
        *map(address, (hidden, grads, activated, sums)), *hidden.shape, len(sums)
    )
    return activated, sums.sum(0)


def sum_rows(rows: Tensor) -> Tensor:
    """Add up rows (N, C) bfloat16: (C,) float32."""
    sums = _sums(rows)
    kernel("esvit_sum_rows", "ppnni")(address(rows), address(sums), *rows.shape, len(sums))
    return sums.sum(0)


def can_multiply_turned(left: Tensor, right: Tensor) -> bool:
    """Whether `multiply_turned` takes these: it works by a processor's tiles, of 32 columns."""
    if not len(left) or left.shape[1] % TILE or right.shape[1] % TILE:
        return False
    return can_work_on(left) and can_work_on(right) and has_tiles()


def multiply_turned(left: Tensor, right: Tensor, out: Tensor, *, is_first: bool) -> Tensor:
    """Add left^T right to what there is, or write it where it is the first.

    Args:
        left: (N, D) bfloat16.
        right: (N, C) bfloat16.
        out: (D, C) float32.
        is_first: Whether there is nothing yet.
    """
    sizes = len(left), left.shape[1], right.shape[1]
    kernel("esvit_multiply_turned", "pppinnn")(
        *map(address, (left, right, out)), int(is_first), *sizes
    )
    return out


def _sums(rows: Tensor) -> Tensor:
    """Take memory for the sums of each thread."""
    return rows.new_zeros(torch.get_num_threads(), rows.shape[1], dtype=torch.float32)

"""Rows moved into windows and back, by our kernel (`windows.cpp`).

Shape letters: B maps, L rows of each, M rows taken, C channels.
"""

import torch
from torch import Tensor

from esvit.native.library import address, kernel, takes


def can_take(x: Tensor, index: Tensor, out: Tensor) -> bool:
    """Whether the kernel takes rows of x (B, L, C) by an index (M,) to `out`."""
    is_right = out.shape == (len(x), len(index), x.shape[2])
    return is_right and takes(index, torch.int64) and takes(x, out.dtype) and takes(out, x.dtype)


def take(x: Tensor, index: Tensor, out: Tensor) -> None:
    """Write rows of x (B, L, C) by an index (M,) int64; L stands for a row of zeros.

    Args:
        x: Of any type.
        index: From 0 to L.
        out: (B, M, C), of the same type.
    """
    B, L, C = x.shape
    sizes = B, L, len(index), C * x.element_size()
    kernel("esvit_take", "pppnnnn")(*map(address, (x, index, out)), *sizes)

"""Prototypes as direction and length, by our kernels (`prototypes.cpp`).

Shapes: K prototypes, D columns.
"""

import torch
from torch import Tensor

from esvit.native.library import address, is_bfloat16, kernel, takes


def can_work_on(directions: Tensor, lengths: Tensor) -> bool:
    """Whether the kernels take directions (K, D) and lengths (K, 1)."""
    return takes(directions, torch.float32) and takes(lengths, torch.float32)


def can_write(out: Tensor) -> bool:
    """Whether effective prototypes can be written there."""
    return takes(out, torch.float32, torch.bfloat16)


def write(directions: Tensor, lengths: Tensor, out: Tensor) -> Tensor:
    """Write effective prototypes.

    Args:
        directions: (K, D) float32.
        lengths: (K, 1) float32.
        out: (K, D), float32 or bfloat16.
    """
    kernel("esvit_write_prototypes", "pppnni")(
        *map(address, (directions, lengths, out)),
        *directions.shape,
        is_bfloat16(out),
    )
    return out


def through_weight_norm_(
    gradient: Tensor, directions: Tensor, lengths: Tensor, factor: Tensor
) -> Tensor:
    """Turn the gradient of effective prototypes times a factor into that of directions, in place.

    Args:
        gradient: (K, D) float32.
        directions: (K, D) float32.
        lengths: (K, 1) float32.
        factor: A number.

    Returns:
        (K, 1) float32, the gradient of the lengths.
    """
    grad_lengths = torch.empty_like(lengths)
    kernel("esvit_through_weight_norm", "pppfpnn")(
        *map(address, (gradient, directions, lengths)),
        float(factor),
        address(grad_lengths),
        *directions.shape,
    )
    return grad_lengths


def compare(row: Tensor, directions: Tensor, lengths: Tensor) -> Tensor:
    """Multiply a row (1, D) float32 with effective prototypes: (1, K)."""
    out = torch.empty_like(lengths)
    tensors = row, directions, lengths, out
    kernel("esvit_compare_prototypes", "ppppnn")(*map(address, tensors), *directions.shape)
    return out.T

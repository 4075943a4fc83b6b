"""Prototypes as direction and length, without a tensor of their size between one and the other.

Weight normalisation (Salimans and Kingma 2016): effective prototypes w = g v / |v|, of directions v
and lengths g.

Shapes: K prototypes, D columns.
"""

import torch
from torch import Tensor

from esvit.backbones.linear import multiply
from esvit.head import Prototypes
from esvit.native import prototypes as native

_ROWS_AT_ONCE = 4096


def write_weight(prototypes: Prototypes, out: Tensor) -> Tensor:
    """Write effective prototypes into (K, D), of any dtype and without a graph; gives them."""
    if native.can_work_on(*prototypes) and native.can_write(out):
        return native.write(*prototypes, out)
    return out.copy_(prototypes.weight)


def through_weight_norm_(
    gradient: Tensor, prototypes: Prototypes, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn the gradient of effective prototypes, in place, into that of directions; and lengths.

    With u = v / |v|: dg = u . dw and dv = (g / |v|) (dw - u dg).

    Args:
        gradient: (K, D) float32.
        prototypes: K of them.
        factor: What the gradient is to be multiplied with, a scalar.
    """
    if native.can_work_on(*prototypes):
        return gradient, native.through_weight_norm_(gradient, *prototypes, factor)
    grad_lengths = torch.empty_like(prototypes.lengths)
    parts = (torch.split(x, _ROWS_AT_ONCE) for x in (gradient, grad_lengths, *prototypes))
    for block, grad_length, direction, length in zip(*parts, strict=True):
        norm = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
        along = (block * direction).sum(dim=1, keepdim=True) / norm
        block.addcmul_(direction, along / norm, value=-1).mul_(factor * length / norm)
        torch.mul(along, factor, out=grad_length)
    return gradient, grad_lengths


def compare(row: Tensor, prototypes: Prototypes) -> Tensor:
    """Give the logits (1, K) of one row of a bottleneck (1, D) float32."""
    if native.can_work_on(*prototypes):
        return native.compare(row, *prototypes)
    return multiply(row, prototypes.directions, None) * prototypes.scales.T

"""Layer norm to bfloat16, by our kernels (`layer_norm.cpp`).

Shape letters: N rows, C channels.
"""

import torch
from torch import Tensor

from esvit.native.library import address, is_bfloat16, kernel, takes


def can_normalise(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> bool:
    """Whether the kernels take x (..., C), weight and bias (C,)."""
    if weight is None or bias is None or not takes(x, torch.float32, torch.bfloat16):
        return False
    return takes(weight, torch.float32) and takes(bias, torch.float32)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Normalise rows (N, C): (N, C) bfloat16; weight and bias are (C,) float32."""
    out = torch.empty_like(x, dtype=torch.bfloat16)
    kernel("esvit_layer_norm", "pppfpnni")(
        *map(address, (x, weight, bias)), eps, address(out), *x.shape, is_bfloat16(x)
    )
    return out


def layer_norm_back(
    grad: Tensor, x: Tensor, weight: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Give the gradients of x, weight and bias from that of the result (N, C) bfloat16."""
    grad_x = torch.empty_like(x)
    sums = weight.new_zeros(torch.get_num_threads(), 2, x.shape[1])
    kernel("esvit_layer_norm_back", "pppfppnnii")(
        *map(address, (grad, x, weight)),
        eps,
        *map(address, (grad_x, sums)),
        *(*x.shape, len(sums), is_bfloat16(x)),
    )
    of_weight, of_bias = sums.sum(0)
    return grad_x, of_weight, of_bias

"""Layer norms in front of products, whose result is made in the type that the products want.

Shape letter: C channels.
"""

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from esvit.backbones.linear import dtype_of
from esvit.native import layer_norm as native


def norm_before_product(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    """Give norm(x) of x (..., C), in bfloat16 where products are and a kernel makes it so."""
    is_wanted = dtype_of(x) == torch.bfloat16
    if not is_wanted or not native.can_normalise(x, norm.weight, norm.bias):
        return cast(Tensor, norm(x))
    # torch leaves `apply` untyped.
    made: Tensor = _LayerNorm.apply(x.flatten(0, -2), norm.weight, norm.bias, norm.eps)  # type: ignore[no-untyped-call]
    return made.view(x.shape)


class _LayerNorm(torch.autograd.Function):
    """Of rows (N, C); keeps nothing else."""

    @staticmethod
    def forward(  # torch gives contexts no public type
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> Tensor:
        """Normalise."""
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return native.layer_norm(x, weight, bias, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # as above
        """Give the gradients."""
        x, weight = ctx.saved_tensors
        return *native.layer_norm_back(grad.contiguous(), x, weight, ctx.eps), None

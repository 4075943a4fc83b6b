"""Attention from one linear layer to the other, which keeps nothing but its input.

Queries, keys, values and what they mix to are four times the input. The backward pass makes the
first three again by one product, which adds a quarter to what the linear layers multiply in both
passes; the last falls off on the way, for the weights are made again anyway (`attend.py`).

Shape letters: B windows of a batch, N biases, T tokens that see each other, C channels.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from esvit.backbones.attend import apart, attend_fused, fill_gradients
from esvit.backbones.linear import multiply, parameter_gradients


def attend_between(
    qkv: nn.Linear, proj: nn.Linear, x: Tensor, bias: Tensor, num_heads: int
) -> Tensor:
    """Attend among the tokens of each row.

    Args:
        qkv: Gives queries, keys and values.
        proj: Takes what they mix to.
        x: (B, T, C), in the dtype of all products.
        bias: (N, heads, T, T) added to the scores, where N divides B: row b has bias b % N.
        num_heads: Of the attention.

    Returns:
        (B, T, C).
    """
    parameters = qkv.weight, qkv.bias, proj.weight, proj.bias
    # torch leaves `apply` untyped.
    attended: Tensor = _AttendBetween.apply(x, bias, num_heads, *parameters)  # type: ignore[no-untyped-call]
    return attended


class _AttendBetween(torch.autograd.Function):
    """With gradients for everything."""

    @staticmethod
    def forward(
        ctx: Any,  # torch gives contexts no public type
        x: Tensor,
        bias: Tensor,
        num_heads: int,
        *parameters: Tensor,
    ) -> Tensor:
        """Attend."""
        qkv_weight, qkv_bias, proj_weight, proj_bias = parameters
        ctx.save_for_backward(x, qkv_weight, qkv_bias, proj_weight, bias)
        ctx.num_heads = num_heads
        qkv = _split(multiply(x, qkv_weight, qkv_bias), num_heads)
        mixed = attend_fused(*apart(qkv), bias.detach(), qkv.shape[-1] ** -0.5)
        return multiply(mixed.transpose(1, 2).flatten(2), proj_weight, proj_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # as above
        """Give the gradients, from the last layer to the first."""
        x, qkv_weight, qkv_bias, proj_weight, bias = ctx.saved_tensors
        qkv = _split(multiply(x, qkv_weight, qkv_bias), ctx.num_heads)
        grad_mixed = (grad @ proj_weight.to(grad.dtype)).view(*qkv.shape[:2], *qkv.shape[3:])
        grad_qkv, mixed = torch.empty_like(qkv), torch.empty_like(grad_mixed)
        grad_bias = fill_gradients(
            apart(grad_qkv),
            grad_mixed.transpose(1, 2),
            apart(qkv),
            bias,
            qkv.shape[-1] ** -0.5,
            mixed.transpose(1, 2),
        )
        grad_qkv = grad_qkv.flatten(2)
        return (
            grad_qkv @ qkv_weight.to(grad.dtype),
            grad_bias,
            None,
            *parameter_gradients(grad_qkv, x, qkv_weight.dtype),
            *parameter_gradients(grad, mixed.flatten(2), proj_weight.dtype),
        )


def _split(qkv: Tensor, num_heads: int) -> Tensor:
    """View a common product (B, T, 3 * C) as (B, T, 3, heads, C / heads)."""
    B, T, width = qkv.shape
    return qkv.view(B, T, 3, num_heads, width // (3 * num_heads))

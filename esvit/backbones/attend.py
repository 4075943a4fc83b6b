"""Scaled dot-product attention, fused or written out: whichever a network should run at the time.

Shape letters: B batch, or whatever stands before the heads, N biases, S queries, T keys, D channels
of a head.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 4 * 2**20
"""Float32 scores that a backward pass works on at once: near a CPU's caches."""

GPU_CHUNK_BYTES = 256 * 2**20
"""The same elsewhere, where calls cost more than caches save."""


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Mix values by softmax(scale * query key^T + bias).

    Args:
        query: (B, heads, S, D).
        key: (B, heads, T, D).
        value: (B, heads, T, D).
        bias: (N, heads, S, T), where N divides B: row b has bias b % N. Or None for none.
        scale: Of the scores.

    Returns:
        (B, heads, S, D).
    """
    # An exporter takes the fused operator apart, with more copies than the written-out form.
    if torch.compiler.is_exporting():
        return attend_with_weights(query, key, value, bias, scale)[0]
    if bias is None or torch.compiler.is_compiling() or not is_learned(bias):
        return attend_fused(query, key, value, bias, scale)
    # torch leaves `apply` untyped.
    attended: Tensor = _AttendWithBias.apply(query, key, value, bias, scale)  # type: ignore[no-untyped-call]
    return attended


def attend_with_weights(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Mix values as `attend` does and give the weights (B, heads, S, T) as well."""
    scores = (query * scale) @ key.transpose(-2, -1)
    if bias is not None:
        scores = scores.view(-1, *bias.shape) + bias
    weights = scores.view(*query.shape[:3], -1).softmax(-1)
    return weights.to(value.dtype) @ value, weights


def is_learned(bias: Tensor) -> bool:
    """Whether a backward pass will want the gradient of a bias."""
    return torch.is_grad_enabled() and bias.requires_grad


def attend_fused(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> Tensor:
    """Let torch choose the operator.

    On a CPU that is a slow one for a bias that wants a gradient, even where none is being made: a
    function with a backward pass of its own calls this with a detached one.
    """
    if bias is not None:
        repeats = len(query) // len(bias)
        bias = bias.to(query.dtype).expand(repeats, *bias.shape).flatten(0, 1)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)


class _AttendWithBias(torch.autograd.Function):
    """Attention with a bias that is learned, for which torch has no fused operator on every device.

    Nothing of size S x T is kept: the backward pass makes the weights again, a few rows at a time.
    """

    @staticmethod
    def forward(
        ctx: Any,  # torch gives contexts no public type
        query: Tensor,
        key: Tensor,
        value: Tensor,
        bias: Tensor,
        scale: float,
    ) -> Tensor:
        """Attend."""
        ctx.save_for_backward(query, key, value, bias)
        ctx.scale = scale
        return attend_fused(query, key, value, bias.detach(), scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # as above
        """Give the four gradients."""
        *inputs, bias = ctx.saved_tensors
        grads = [torch.empty_like(x) for x in inputs]
        return *grads, fill_gradients(grads, grad, inputs, bias, ctx.scale), None


def apart(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """View a common product (B, T, 3, heads, D) as query, key and value (B, heads, T, D)."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return query, key, value


def fill_gradients(
    grads: Sequence[Tensor],
    grad: Tensor,
    inputs: Sequence[Tensor],
    bias: Tensor,
    scale: float,
    mixed: Tensor | None = None,
) -> Tensor:
    """Write the gradients of query, key and value; gives the bias's.

    Args:
        grads: Where to write them.
        grad: (B, heads, S, D) of what attention gave.
        inputs: Query, key and value.
        bias: (N, heads, S, T).
        scale: Of the scores.
        mixed: (B, heads, S, D), where to write what attention gave, if that is wanted again.
    """
    exact = torch.promote_types(grad.dtype, torch.float32)
    grad_bias = torch.zeros_like(bias, dtype=exact)
    bias = bias.to(grad.dtype).to(exact)  # as the forward pass rounded it
    chunk_bytes = CHUNK_BYTES if bias.device.type == "cpu" else GPU_CHUNK_BYTES
    rows = max(1, chunk_bytes // (4 * bias.numel())) * len(bias)
    outputs = grads if mixed is None else (*grads, mixed)
    tensors = (torch.split(x, rows) for x in (grad, *inputs, *outputs))
    for grad_part, query, key, value, *parts in zip(*tensors, strict=True):
        made = _gradients(grad_part, (query, key, value), bias, scale, mixes=mixed is not None)
        torch.mul(made.query, scale, out=parts[0])
        torch.mul(made.key, scale, out=parts[1])
        parts[2].copy_(made.value)
        grad_bias += made.bias
        if made.mixed is not None:
            parts[3].copy_(made.mixed)
    return grad_bias


class _Gradients(NamedTuple):
    """Gradients of some rows.

    Attributes:
        query: Without the scale of the scores.
        key: Without it, too.
        value: Complete.
        bias: The sum over these rows, in the dtype of the bias given.
        mixed: No gradient but what attention gave, or None.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor
    mixed: Tensor | None


def _gradients(
    grad: Tensor,
    inputs: tuple[Tensor, Tensor, Tensor],
    bias: Tensor,
    scale: float,
    *,
    mixes: bool,
) -> _Gradients:
    """Make the weights of some rows again, the gradients from them and, if it mixes, the result.

    The bias says in which dtype weights are made.
    """
    shape, dtype, exact = grad.shape, grad.dtype, bias.dtype
    grad, query, key, value = (x.reshape(-1, *x.shape[2:]) for x in (grad, *inputs))
    scores = torch.bmm(query, key.mT).to(exact).view(-1, *bias.shape)  # (B / N, N, heads, S, T)
    weights = torch.add(bias, scores, alpha=scale).softmax(-1)
    grad_weights = torch.bmm(grad, value.mT).to(exact).view_as(weights)
    # What torch's own softmax does going back.
    grad_scores = torch._softmax_backward_data(grad_weights, weights, -1, exact)
    weights = weights.to(dtype).view(-1, *bias.shape[2:])
    rounded = grad_scores.to(dtype).view_as(weights)
    return _Gradients(
        torch.bmm(rounded, key).view(shape),
        torch.bmm(rounded.mT, query).view(inputs[1].shape),
        torch.bmm(weights.mT, grad).view(inputs[2].shape),
        grad_scores.sum(0),
        torch.bmm(weights, value).view(shape) if mixes else None,
    )

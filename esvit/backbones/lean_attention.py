"""Attention inside the windows of maps of several sizes, which keeps little for its backward pass.

The biases that are learned differ by what a size hides from whom; all else that has weights is done
once for all sizes. Weights of attention are made again going back (`attend.py`).

Queries, keys, values and what they mix to are four times the input. `attend_between` keeps nothing
but its input: the backward pass makes the first three again by one product, which adds a quarter to
what the linear layers multiply in both passes; the last falls off on the way.

Shape letters: R rows, S slots, C channels, N biases, T slots of a window.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from esvit.backbones.attend import apart, attend_fused, fill_gradients
from esvit.backbones.linear import multiply, multiply_back, parameter_gradients
from esvit.backbones.packed import Part, fill_rows, to_rows, to_slots
from esvit.native import attention as native


class Scores(NamedTuple):
    """What is known of the scores before queries and keys are.

    Attributes:
        num_heads: Of the attention.
        parts: Which slots lie where.
        biases: For each part (N, heads, T, T) added to the scores, N windows a map or 1 for all.
    """

    num_heads: int
    parts: Sequence[Part]
    biases: Sequence[Tensor]


def mix(qkv: Tensor, scores: Scores) -> Tensor:
    """Attend inside windows and put them together.

    Args:
        qkv: (S, 3 * C), queries, keys and values of the slots.
        scores: What is added to the scores, and to which.

    Returns:
        (R, C) of the rows, with padding left out.
    """
    num_heads, parts, biases = scores
    # torch leaves `apply` untyped.
    mixed: Tensor = _Mix.apply(qkv, num_heads, parts, *biases)  # type: ignore[no-untyped-call]
    return mixed


def attend_between(qkv: nn.Linear, proj: nn.Linear, x: Tensor, scores: Scores) -> Tensor:
    """Attend inside windows, from one linear layer to the other.

    Args:
        qkv: Gives queries, keys and values.
        proj: Takes what they mix to.
        x: (S, C) of the slots, in the dtype of all products.
        scores: What is added to the scores, and to which.

    Returns:
        (R, C) of the rows.
    """
    parameters = qkv.weight, qkv.bias, proj.weight, proj.bias
    num_heads, parts, biases = scores
    attended: Tensor = _AttendBetween.apply(x, num_heads, parts, *parameters, *biases)  # type: ignore[no-untyped-call]  # as above
    return attended


class _Mix(torch.autograd.Function):
    """With gradients for the common product and the biases."""

    @staticmethod
    def forward(
        ctx: Any,  # torch gives contexts no public type
        qkv: Tensor,
        num_heads: int,
        parts: Sequence[Part],
        *biases: Tensor,
    ) -> Tensor:
        """Attend."""
        ctx.save_for_backward(qkv, *biases)
        ctx.num_heads, ctx.parts = num_heads, parts
        return _mix(qkv, Scores(num_heads, parts, biases))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # as above
        """Give the gradients."""
        qkv, *biases = ctx.saved_tensors
        scores = Scores(ctx.num_heads, ctx.parts, biases)
        grad_qkv, grad_biases = _go_back(to_slots(grad, ctx.parts), qkv, scores, None)
        return grad_qkv, None, None, *grad_biases


class _AttendBetween(torch.autograd.Function):
    """With gradients for everything."""

    @staticmethod
    def forward(
        ctx: Any,  # torch gives contexts no public type
        x: Tensor,
        num_heads: int,
        parts: Sequence[Part],
        *tensors: Tensor,
    ) -> Tensor:
        """Attend; the tensors are both layers' weights and biases, then what the scores get."""
        (qkv_weight, qkv_bias, proj_weight, proj_bias), biases = tensors[:4], tensors[4:]
        ctx.save_for_backward(x, qkv_weight, qkv_bias, proj_weight, *biases)
        ctx.num_heads, ctx.parts = num_heads, parts
        qkv = multiply(x, qkv_weight, qkv_bias)
        return multiply(_mix(qkv, Scores(num_heads, parts, biases)), proj_weight, proj_bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # as above
        """Give the gradients, from the last layer to the first."""
        x, qkv_weight, qkv_bias, proj_weight, *biases = ctx.saved_tensors
        qkv = multiply(x, qkv_weight, qkv_bias)
        grad_mixed = to_slots(multiply_back(grad, proj_weight), ctx.parts)
        mixed = torch.empty_like(grad_mixed)
        scores = Scores(ctx.num_heads, ctx.parts, biases)
        grad_qkv, grad_biases = _go_back(grad_mixed, qkv, scores, mixed)
        return (
            multiply_back(grad_qkv, qkv_weight),
            None,
            None,
            *parameter_gradients(grad_qkv, x, qkv_weight.dtype),
            *parameter_gradients(grad, to_rows(mixed, ctx.parts), proj_weight.dtype),
            *grad_biases,
        )


def _mix(qkv: Tensor, scores: Scores) -> Tensor:
    """Attend inside windows (S, 3 * C): (R, C)."""
    C = qkv.shape[-1] // 3
    out = qkv.new_empty(scores.parts[-1].row_span.stop, C)
    for part, bias, common in _each(qkv, scores):
        windows = _attend(common, bias)
        fill_rows(out, windows.reshape(part.size.number, part.layout.slots.numel(), C), part)
    return out


def _go_back(
    grad: Tensor, qkv: Tensor, scores: Scores, mixed: Tensor | None
) -> tuple[Tensor, list[Tensor]]:
    """Give the gradients of the common product and of the biases.

    Args:
        grad: (S, C) of what attention gave.
        qkv: (S, 3 * C).
        scores: As in the forward pass.
        mixed: (S, C), where to write what attention gave, if that is wanted again.
    """
    grad_qkv = torch.empty_like(qkv)
    grad_biases = []
    parts = zip(_each(qkv, scores), _each(grad_qkv, scores), strict=True)
    for (part, bias, common), (_, _, grad_common) in parts:
        shape = *common.shape[:2], *common.shape[3:]  # windows, T, heads, channels of a head
        grad_part = grad[part.slot_span].view(shape)
        mixed_part = None if mixed is None else mixed[part.slot_span].view(shape)
        grad_biases.append(_attend_back(grad_part, common, bias, grad_common, mixed_part))
    return grad_qkv, grad_biases


def _each(qkv: Tensor, scores: Scores) -> Iterator[tuple[Part, Tensor, Tensor]]:
    """Give each size its slots of (S, 3 * C) as (windows, T, 3, heads, C / heads)."""
    heads, width = scores.num_heads, qkv.shape[-1]
    for part, bias in zip(scores.parts, scores.biases, strict=True):
        shape = part.num_windows, bias.shape[-1], 3, heads, width // (3 * heads)
        yield part, bias, qkv[part.slot_span].view(shape)


def _attend(qkv: Tensor, bias: Tensor) -> Tensor:
    """Attend inside windows (windows, T, 3, heads, D): (windows, T, heads, D)."""
    if native.can_attend(qkv):
        return native.attend(qkv, bias)
    return attend_fused(*apart(qkv), bias.detach(), qkv.shape[-1] ** -0.5).transpose(1, 2)


def _attend_back(
    grad: Tensor, qkv: Tensor, bias: Tensor, grad_qkv: Tensor, mixed: Tensor | None
) -> Tensor:
    """Write the gradient of queries, keys and values, and what `_attend` gave; give the bias's."""
    if native.can_attend(qkv):
        return native.attend_back(grad.contiguous(), qkv, bias, grad_qkv, mixed)
    return fill_gradients(
        apart(grad_qkv),
        grad.transpose(1, 2),
        apart(qkv),
        bias,
        qkv.shape[-1] ** -0.5,
        None if mixed is None else mixed.transpose(1, 2),
    )

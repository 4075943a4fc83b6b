"""An MLP that keeps little but its input, and whose hidden values hardly ever all live at once.

They are four times as wide as the map. Both passes go through the rows a chunk at a time, each
chunk's hidden values near a CPU's caches; the backward pass makes them again, which costs a product
beside the six of both passes. Where that is dear and they are few, they are kept instead, as they
are before the GELU.

Shape letters: N rows, C channels, H hidden ones.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from esvit.backbones.linear import (
    multiply,
    multiply_back,
    multiply_gelu,
    sum_rows,
    weight_gradient,
)
from esvit.backbones.remake import is_worth_keeping
from esvit.native import layers as native

CHUNK_BYTES = 16 * 2**20
"""Hidden values that live at once."""

GPU_CHUNK_BYTES = 2**30
"""The same elsewhere, where calls cost more than caches save."""


def feed_forward(fc1: nn.Linear, fc2: nn.Linear, x: Tensor) -> Tensor:
    """Give fc2(gelu(fc1(x))) of x (..., C), which is in the dtype of all products."""
    parameters = fc1.weight, fc1.bias, fc2.weight, fc2.bias
    # torch leaves `apply` untyped.
    out: Tensor = _FeedForward.apply(x.flatten(0, -2), *parameters)  # type: ignore[no-untyped-call]
    return out.view(*x.shape[:-1], fc2.out_features)


class _FeedForward(torch.autograd.Function):
    """Of rows (N, C)."""

    @staticmethod
    def forward(
        ctx: Any,  # torch gives contexts no public type
        x: Tensor,
        weight1: Tensor,
        bias1: Tensor,
        weight2: Tensor,
        bias2: Tensor,
    ) -> Tensor:
        """Give the result."""
        first = weight1.to(x.dtype), bias1.to(x.dtype)
        second = weight2.to(x.dtype), bias2.to(x.dtype)
        hidden = multiply(x, *first) if is_worth_keeping(x) else None
        ctx.save_for_backward(x, weight1, bias1, weight2, hidden)
        out = x.new_empty(len(x), len(weight2))
        parts = _chunks(len(weight1), x, out, x if hidden is None else hidden)
        for rows, result, source in zip(*parts, strict=True):
            activated = multiply_gelu(rows, *first) if hidden is None else F.gelu(source)
            result.copy_(multiply(activated, *second))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:  # as above
        """Give the gradients, those of the parameters summed over the chunks."""
        x, *parameters, kept = ctx.saved_tensors
        weight1, bias1, weight2 = (parameter.to(x.dtype) for parameter in parameters)
        dtype = parameters[0].dtype
        grad_x = torch.empty_like(x)
        grad1 = grad2 = None
        sums: list[Tensor] = []
        parts = _chunks(len(weight1), x, grad, grad_x, x if kept is None else kept)
        for rows, grads, result, source in zip(*parts, strict=True):
            hidden = multiply(rows, weight1, bias1) if kept is None else source
            grad_activated = multiply_back(grads, weight2)
            activated, grad_hidden, sums1 = _back(grad_activated, hidden)
            grad2 = weight_gradient(grads, activated, dtype, grad2)
            grad1 = weight_gradient(grad_hidden, rows, dtype, grad1)
            multiply_back(grad_hidden, weight1, out=result)
            sums.append(sums1.to(dtype))
        assert grad1 is not None
        assert grad2 is not None
        return grad_x, grad1, torch.stack(sums).sum(0), grad2, sum_rows(grad).to(dtype)


def _back(grads: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Go back through the GELU (N, H): its values, the gradients before it, and their sums (H,)."""
    if native.can_work_on(hidden) and native.can_work_on(grads):
        activated, sums = native.gelu_back_(grads, hidden)
        return activated, grads, sums
    before = torch.ops.aten.gelu_backward(grads, hidden)
    return F.gelu(hidden), before, sum_rows(before)


def _chunks(hidden_dim: int, *tensors: Tensor) -> list[tuple[Tensor, ...]]:
    """Cut rows (N, ...) so that each chunk's hidden values are few enough."""
    first = tensors[0]
    chunk_bytes = CHUNK_BYTES if first.device.type == "cpu" else GPU_CHUNK_BYTES
    num_bytes = len(first) * hidden_dim * first.element_size()
    # Chunks of equal size want the same kernels: maps have many twos in their number of rows.
    num_chunks = 1 << max(0, math.ceil(math.log2(max(1, num_bytes) / chunk_bytes)))
    return [tensor.tensor_split(num_chunks) for tensor in tensors]

"""Linear layers of a network at work, by the fastest operator.

torch's own bfloat16 product on a CPU copies the bias into its result and reads it again, and a GELU
behind it is a pass over memory more. oneDNN does all of it while it writes the result; this is the
operator that torch.compile chooses. It has no place in an exported graph, so there, and on all
other devices, the layers are called as usual. Its gradient is ours: autocast's would keep a copy of
the weight in bfloat16.

In float32 torch multiplies by MKL, which uses the AVX-512 of one maker's processors alone; on those
of others oneDNN is the faster one, but for gradients of weights.

Shape letters: C and D channels.
"""

from functools import cache
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from esvit.native import layers as native

_HAS_OPERATOR = hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Its name is not one that torch promises to keep."""


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Give layer(x) of x (..., C): (..., D)."""
    dtype = dtype_of(x)
    if not _is_direct(x) or not _is_faster(dtype):
        return cast(Tensor, layer(x))
    # torch leaves `apply` untyped.
    product: Tensor = _Linear.apply(x.to(dtype), layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    return product


def linear_gelu(layer: nn.Linear, x: Tensor) -> Tensor:
    """Give the exact GELU of layer(x) of x (..., C): (..., D)."""
    if _is_direct(x) and not torch.is_grad_enabled():
        return _in_one_pass(x.to(dtype_of(x)), layer.weight, layer.bias, "gelu")
    return F.gelu(layer(x))


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Do what a linear layer does with x (..., C), in the dtype of x and without a gradient."""
    if _is_direct(x) and _is_faster(x.dtype):
        return _in_one_pass(x, weight, bias, "none")
    return F.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def multiply_into(out: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """Give what `multiply` gives of x (N, C), in `out` (N, D) if the fastest way can do that."""
    if x.dtype == torch.float32 and _is_direct(x) and _is_faster(x.dtype):
        return _in_one_pass(x, weight, None, "none")
    return torch.mm(x, weight.T, out=out)


def multiply_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Give the exact GELU of what `multiply` gives."""
    if x.dtype == torch.bfloat16 and _is_direct(x):
        return _in_one_pass(x, weight, bias, "gelu")
    return F.gelu(multiply(x, weight, bias))


def multiply_back(grad: Tensor, weight: Tensor, out: Tensor | None = None) -> Tensor:
    """Give the gradient (..., C) of a linear layer's input from that of its result (..., D).

    Args:
        grad: In the dtype of all products.
        weight: (D, C) of the layer.
        out: Where to write it, or None.
    """
    weight = weight.to(grad.dtype)
    if grad.dtype == torch.float32 and _is_direct(grad) and _is_faster(grad.dtype):
        product = _in_one_pass(grad, weight.T, None, "none")
        return product if out is None else out.copy_(product)
    return torch.matmul(grad, weight, out=out)


def parameter_gradients(grad: Tensor, x: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Give the gradients of a linear layer's weight (D, C) and bias (D,).

    Args:
        grad: (..., D), of the result.
        x: (..., C), the input.
        dtype: Of the parameters, and of their gradients.
    """
    return weight_gradient(grad, x, dtype), sum_rows(grad).to(dtype)


def weight_gradient(
    grad: Tensor, x: Tensor, dtype: torch.dtype, add_to: Tensor | None = None
) -> Tensor:
    """Give the former of these, or add it to what there is of it."""
    grad, x = grad.reshape(-1, grad.shape[-1]), x.reshape(-1, x.shape[-1])
    if dtype == torch.float32 and native.can_multiply_turned(grad, x):
        out = grad.new_empty(grad.shape[1], x.shape[1], dtype=dtype) if add_to is None else add_to
        return native.multiply_turned(grad, x, out, is_first=add_to is None)
    is_turned = x.shape[1] > grad.shape[1] and _is_slow_in_mkl(grad)
    product = (x.mT @ grad).mT if is_turned else grad.mT @ x  # faster with the longer side first
    return product.to(dtype) if add_to is None else add_to.add_(product)


def sum_rows(x: Tensor) -> Tensor:
    """Add up the rows of (..., C): (C,); sums of bfloat16 are made in float32."""
    rows = x.reshape(-1, x.shape[-1])
    if native.can_work_on(rows):
        return native.sum_rows(rows)
    return rows.sum(0)


class _Linear(torch.autograd.Function):
    """A linear layer whose parameters may have another type."""

    @staticmethod
    def forward(  # torch gives contexts no public type
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """Multiply."""
        ctx.save_for_backward(x, weight)
        return multiply(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # as above
        """Give the gradients that are asked for."""
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        grad_x = multiply_back(grad, weight) if of_x else None
        if not (of_weight or of_bias):
            return grad_x, None, None
        grad_weight, grad_bias = parameter_gradients(grad, x, weight.dtype)
        return grad_x, grad_weight if of_weight else None, grad_bias if of_bias else None


def dtype_of(x: Tensor) -> torch.dtype:
    """Give the type that a layer computes x in."""
    device = x.device.type
    is_autocast = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_autocast else x.dtype


def _is_slow_in_mkl(x: Tensor) -> bool:
    """Whether products of x are MKL's, on a processor for which it is not made."""
    return x.device.type == "cpu" and x.dtype == torch.float32 and _is_not_for_mkl()


def _is_faster(dtype: torch.dtype) -> bool:
    """Whether oneDNN multiplies faster than the usual operator does."""
    return dtype == torch.bfloat16 or (dtype == torch.float32 and _is_not_for_mkl())


@cache
def _is_not_for_mkl() -> bool:
    """Whether this processor has AVX-512, but is not of the make whose AVX-512 MKL uses."""
    if torch.backends.cpu.get_cpu_capability() != "AVX512":
        return False
    try:
        return "GenuineIntel" not in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False


def _is_direct(x: Tensor) -> bool:
    """Whether oneDNN may be called by name: on a CPU, and eagerly."""
    if torch.compiler.is_compiling() or not _HAS_OPERATOR:
        return False
    if x.device.type != "cpu" or not x.numel() or not torch.backends.mkldnn.enabled:
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch's
        return False
    if dtype_of(x) == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return dtype_of(x) == torch.float32


def _in_one_pass(x: Tensor, weight: Tensor, bias: Tensor | None, then: str) -> Tensor:
    """Multiply, add the bias, and do what comes then: "none" or "gelu"."""
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    # The last argument is how a GELU is approximated: not at all.
    product = torch.ops.mkldnn._linear_pointwise(x, weight, bias, then, [], "none")
    return cast(Tensor, product)

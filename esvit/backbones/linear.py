"""Linear layers of a network at work, by the fastest operator.

torch's own bfloat16 product on a CPU copies the bias into its result and reads it again, and a GELU
behind it is a pass over memory more. oneDNN does all of it while it writes the result; this is the
operator that torch.compile chooses. It has no gradient and no place in an exported graph, so
wherever one is needed, and on all other devices, the layers are called as usual.

Shape letters: C and D channels.
"""

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_HAS_OPERATOR = hasattr(torch.ops.mkldnn, "_linear_pointwise")
"""Its name is not one that torch promises to keep."""


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Give layer(x) of x (..., C): (..., D)."""
    # In float32 the usual operator is the faster one.
    if _dtype(x) == torch.bfloat16 and _is_direct(x):
        return _in_one_pass(layer, x, "none")
    return cast(Tensor, layer(x))


def linear_gelu(layer: nn.Linear, x: Tensor) -> Tensor:
    """Give the exact GELU of layer(x) of x (..., C): (..., D)."""
    if _is_direct(x):
        return _in_one_pass(layer, x, "gelu")
    return F.gelu(layer(x))


def _dtype(x: Tensor) -> torch.dtype:
    """Give the type that a layer computes x in."""
    device = x.device.type
    is_autocast = torch.is_autocast_enabled(device)
    return torch.get_autocast_dtype(device) if is_autocast else x.dtype


def _is_direct(x: Tensor) -> bool:
    """Whether oneDNN may be called by name: on a CPU, without gradients, and eagerly."""
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or not _HAS_OPERATOR:
        return False
    if x.device.type != "cpu" or not x.numel() or not torch.backends.mkldnn.enabled:
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]  # torch's
        return False
    if _dtype(x) == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return _dtype(x) == torch.float32


def _in_one_pass(layer: nn.Linear, x: Tensor, then: str) -> Tensor:
    """Multiply, add the bias, and do what comes then: "none" or "gelu"."""
    dtype = _dtype(x)
    weight = layer.weight.to(dtype)
    bias = None if layer.bias is None else layer.bias.to(dtype)
    # The last argument is how a GELU is approximated: not at all.
    product = torch.ops.mkldnn._linear_pointwise(x.to(dtype), weight, bias, then, [], "none")
    return cast(Tensor, product)

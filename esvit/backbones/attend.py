"""Scaled dot-product attention, fused or written out: whichever a network should run at the time.

Shape letters: B batch, or whatever stands before the heads, S queries, T keys, D channels of a
head. Leading axes must agree or be 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float) -> Tensor:
    """Mix values by softmax(scale * query key^T + bias).

    Args:
        query: (B, heads, S, D).
        key: (B, heads, T, D).
        value: (B, heads, T, D).
        bias: (1 or B, heads, S, T), or None for none.
        scale: Of the scores.

    Returns:
        (B, heads, S, D).
    """
    # An exporter takes the fused operator apart, with more copies than the written-out form.
    if torch.compiler.is_exporting():
        return attend_with_weights(query, key, value, bias, scale)[0]
    bias = None if bias is None else bias.to(query.dtype)
    return F.scaled_dot_product_attention(query, key, value, attn_mask=bias, scale=scale)


def attend_with_weights(
    query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None, scale: float
) -> tuple[Tensor, Tensor]:
    """Mix values as `attend` does and give the weights (B, heads, S, T) as well."""
    scores = (query * scale) @ key.transpose(-2, -1)
    weights = (scores if bias is None else scores + bias).softmax(-1)
    return weights.to(value.dtype) @ value, weights

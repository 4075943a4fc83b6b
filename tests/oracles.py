"""Slow, written-out versions of the equations: loops, no broadcasting, no import from esvit."""

import math

import torch
from torch import Tensor


def window_attention(
    qkv: Tensor, padding: Tensor, table: Tensor, *, side: int, shift: int, mask_padding: bool
) -> Tensor:
    """Shifted-window attention of one head over one map, position by position.

    Args:
        qkv: (H, W, 3, C) query, key and value of every position.
        padding: (3, C) query, key and value of a position that only fills a window up.
        table: ((2 * side - 1) ** 2,) bias of each offset.
        side: Window side.
        shift: By how many positions the map is rolled up and left.
        mask_padding: Whether padding is never looked at.

    Returns:
        (H, W, C).
    """
    H, W, _, C = qkv.shape
    padded = math.ceil(H / side) * side, math.ceil(W / side) * side
    out = torch.zeros(H, W, C)
    for y in range(H):
        for x in range(W):
            scores, values = [], []
            for v in range(padded[0]):
                for u in range(padded[1]):
                    a, b = _place(y, padded[0], side, shift), _place(x, padded[1], side, shift)
                    c, d = _place(v, padded[0], side, shift), _place(u, padded[1], side, shift)
                    if (a[0], b[0]) != (c[0], d[0]):
                        continue
                    is_padding = v >= H or u >= W
                    if is_padding and mask_padding:
                        continue
                    _, key, value = padding if is_padding else qkv[v, u]
                    offset = (a[1] - c[1] + side - 1) * (2 * side - 1) + b[1] - d[1] + side - 1
                    score = qkv[y, x, 0] @ key / math.sqrt(C) + table[offset]
                    apart = (a[2], b[2]) != (c[2], d[2])
                    scores.append(score - 100.0 if apart else score)
                    values.append(value)
            weights = torch.stack(scores).softmax(0)
            out[y, x] = sum(w * value for w, value in zip(weights, values, strict=True))
    return out


def _place(at: int, length: int, side: int, shift: int) -> tuple[int, int, bool]:
    """Window, place in the window, and whether the roll brought the position to the far end."""
    rolled = (at - shift) % length
    return rolled // side, rolled % side, at < shift


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of one head among T tokens, (T, C) each, token by token: (T, C)."""
    rows = []
    for q in query:
        scores = torch.stack([q @ k / math.sqrt(len(q)) for k in key])
        weights = scores.softmax(0)
        rows.append(sum(w * v for w, v in zip(weights, value, strict=True)))
    return torch.stack(rows)

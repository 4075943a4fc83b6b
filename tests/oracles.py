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


def plain_window_attention(qkv: Tensor, *, side: int, scale: float) -> Tensor:
    """Attention of one head inside windows that fit, without any bias, position by position.

    Args:
        qkv: (3, C, H, W) query, key and value of every position.
        side: Window side; divides H and W.
        scale: Of the scores.

    Returns:
        (H, W, C).
    """
    query, key, value = qkv.permute(0, 2, 3, 1)
    H, W, C = query.shape
    out = torch.zeros(H, W, C)
    for y in range(H):
        for x in range(W):
            own = [
                (v, u)
                for v in range(H)
                for u in range(W)
                if (v // side, u // side) == (y // side, x // side)
            ]
            scores = torch.stack([scale * (query[y, x] @ key[at]) for at in own])
            weights = scores.softmax(0)
            out[y, x] = sum(w * value[at] for w, at in zip(weights, own, strict=True))
    return out


def sliding_attention(
    qkv: Tensor,
    classes: Tensor,
    table: Tensor,
    class_biases: Tensor,
    *,
    side: int,
    seen: list[tuple[int, int]],
) -> Tensor:
    """Sliding attention of one head over one map, position by position.

    Args:
        qkv: (H, W, 3, C) query, key and value of every position.
        classes: (G, 3, C) those of class tokens.
        table: ((4 * side - 1) ** 2,) bias of each offset.
        class_biases: (G,) of positions to class tokens.
        side: Chunk side.
        seen: Steps, in chunks, to the chunks that a chunk sees.

    Returns:
        (H, W, C).
    """
    H, W, _, C = qkv.shape
    out = torch.zeros(H, W, C)
    for y in range(H):
        for x in range(W):
            scores = [qkv[y, x, 0] @ k / math.sqrt(C) for k in classes[:, 1]]
            scores = [score + bias for score, bias in zip(scores, class_biases, strict=True)]
            values = list(classes[:, 2])
            for v in range(H):
                for u in range(W):
                    if (v // side - y // side, u // side - x // side) not in seen:
                        continue
                    offset = (y - v + 2 * side - 1) * (4 * side - 1) + x - u + 2 * side - 1
                    scores.append(qkv[y, x, 0] @ qkv[v, u, 1] / math.sqrt(C) + table[offset])
                    values.append(qkv[v, u, 2])
            weights = torch.stack(scores).softmax(0)
            out[y, x] = sum(w * value for w, value in zip(weights, values, strict=True))
    return out

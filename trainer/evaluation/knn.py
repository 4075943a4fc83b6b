"""Classification by the most similar labelled images, the published protocol (as in DINO).

Shapes: N queries, M images of the bank, C features.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.07
"""Divides the cosines in the votes' exponent."""

_CHUNK = 512


def votes(queries: Tensor, bank: Tensor, labels: Tensor, *, k: int, num_classes: int) -> Tensor:
    """Let the k most similar images of the bank vote, each with exp(cosine / 0.07).

    Args:
        queries: (N, C), of any length.
        bank: (M, C), of any length.
        labels: (M,) int64, from 0.
        k: Voters; all images of the bank if it has fewer.
        num_classes: How many there are.

    Returns:
        (N, num_classes) float32.
    """
    bank = F.normalize(bank.float(), dim=-1)
    rows = []
    for some in torch.split(F.normalize(queries.float(), dim=-1), _CHUNK):
        scores, nearest = (some @ bank.T).topk(min(k, len(bank)), dim=-1)  # (n, k)
        weights = (scores / TEMPERATURE).exp()
        empty = weights.new_zeros(len(some), num_classes)
        rows.append(empty.scatter_add_(1, labels[nearest], weights))
    return torch.cat(rows)


def top1(votes: Tensor, labels: Tensor) -> float:
    """Share of queries, 0 to 1, whose class has most votes."""
    return float((votes.argmax(dim=-1) == labels).float().mean())

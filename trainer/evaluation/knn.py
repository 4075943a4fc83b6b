"""Classification by the most similar labelled images, the published protocol (as in DINO).

The bank is looked at part by part, so memory does not grow with it.

Shapes: N queries, M images of the bank, C features, k neighbours, K classes.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

TEMPERATURE = 0.07
"""Divides the cosines in the votes' exponent."""

_QUERIES, _IMAGES = 1024, 16_384
"""How many of each are compared at once: the choice of the best costs more than the products."""


class Neighbours(NamedTuple):
    """The most similar images of the bank, the best first.

    Attributes:
        cosines: (N, k) float32.
        indices: (N, k) int64.
    """

    cosines: Tensor
    indices: Tensor


def neighbours(queries: Tensor, bank: Sequence[Tensor], k: int) -> Neighbours:
    """Find the k most similar images of the bank, or all if it has fewer.

    Args:
        queries: (N, C), of any length.
        bank: Parts (m, C) of M images, of any length.
        k: How many.
    """
    found = [_neighbours(some, bank, k) for some in torch.split(queries, _QUERIES)]
    return Neighbours(*(torch.cat(column) for column in zip(*found, strict=True)))


def vote(found: Neighbours, labels: Tensor, *, num_classes: int, temperature: float) -> Tensor:
    """Let neighbours vote for their classes, each with exp(cosine / temperature).

    Args:
        found: (N, k).
        labels: (M,) int64, from 0.
        num_classes: K.
        temperature: Published 0.07.

    Returns:
        (N, K) float32.
    """
    weights = (found.cosines / temperature).exp()
    empty = weights.new_zeros(len(weights), num_classes)
    return empty.scatter_add_(1, labels[found.indices], weights)


def votes(queries: Tensor, bank: Tensor, labels: Tensor, *, k: int, num_classes: int) -> Tensor:
    """Let the k nearest of a bank (M, C) with labels (M,) vote on queries (N, C): (N, K)."""
    found = neighbours(queries, [bank], k)
    return vote(found, labels, num_classes=num_classes, temperature=TEMPERATURE)


def top1(votes: Tensor, labels: Tensor) -> float:
    """Share of queries, 0 to 1, whose class has most votes."""
    return float((votes.argmax(dim=-1) == labels).float().mean())


def _neighbours(queries: Tensor, bank: Sequence[Tensor], k: int) -> Neighbours:
    """Keep the best k while the bank passes by."""
    queries = F.normalize(queries.float(), dim=-1)
    best = Neighbours(queries.new_empty(len(queries), 0), torch.empty(len(queries), 0).long())
    first = 0
    for chunk in _chunks(bank):
        cosines = queries @ F.normalize(chunk.float(), dim=-1).T  # (n, m)
        top, places = cosines.topk(min(k, len(chunk)), dim=-1)
        cosines = torch.cat([best.cosines, top], dim=1)
        indices = torch.cat([best.indices, places + first], dim=1)
        kept, places = cosines.topk(min(k, cosines.shape[1]), dim=-1)
        best = Neighbours(kept, indices.gather(1, places))
        first += len(chunk)
    return best


def _chunks(bank: Sequence[Tensor]) -> Iterator[Tensor]:
    """Give the rows of all parts in pieces of at most `_IMAGES`."""
    held: list[Tensor] = []
    for piece in (piece for part in bank for piece in torch.split(part, _IMAGES)):
        if held and sum(map(len, held)) + len(piece) > _IMAGES:
            yield torch.cat(held)
            held = []
        held.append(piece)
    if held:
        yield torch.cat(held)

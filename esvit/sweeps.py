"""Softmax over all prototypes, in two sweeps over tiles of logits that are made and dropped.

The first sweep finds the logsumexp of every row. The second makes the same logits again, now as
probabilities, and multiplies them with what they belong to. Making them twice costs a third more
products than keeping them, and is as fast: a tile stays in the caches, the gradient is written
once, and memory does not grow with the number of rows. Statistics are float32.

Shapes: B images, L rows of an image, N rows of a chunk, D columns, K prototypes, W of them at once.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

TILE_ROWS = 768
"""Rows whose logits are made at once: the regions of about four images."""

TILE_COLUMNS = 2048
"""Prototypes they are compared with at once."""


class Chunk(NamedTuple):
    """Some rows of one network, and what is found for them."""

    queries: Tensor  # (N, D) rows over the temperature
    cotangents: Tensor  # (N, D) what each row's softmax is multiplied with in dW
    logsumexp: Tensor  # (N, 1) float32
    mean: Tensor  # (N, D) float32


class Side(NamedTuple):
    """All rows of one network, and what their logits are made with."""

    chunks: list[Chunk]
    logsumexps: Tensor  # (B * L, 1) float32
    means: Tensor  # (B * L, D) float32
    prototypes: Tensor  # (K, D)
    bias: Tensor | None  # (K,) float32


def make_side(
    queries: Tensor,
    cotangents: Tensor,
    prototypes: Tensor,
    dtype: torch.dtype,
    bias: Tensor | None = None,
) -> Side:
    """Cut rows (B, L, D) into chunks, with room for their results."""
    queries, cotangents = queries.flatten(0, 1).to(dtype), cotangents.flatten(0, 1).to(dtype)
    means = torch.zeros_like(queries, dtype=torch.float32)
    logsumexps = means.new_empty(len(means), 1)
    num_chunks = -(-len(means) // TILE_ROWS)
    parts = (x.tensor_split(num_chunks) for x in (queries, cotangents, logsumexps, means))
    chunks = [Chunk(*part) for part in zip(*parts, strict=True)]
    return Side(chunks, logsumexps, means, prototypes, bias)


class Tile(NamedTuple):
    """Logits of N rows for W prototypes; in float32 both are the same memory."""

    products: Tensor  # (N, W), as the product gives them
    logits: Tensor  # (N, W) float32


class Scratch:
    """Memory for one tile of logits, used again by all: fresh pages cost as much as the sums."""

    def __init__(self, *sides: Side) -> None:
        """Take memory for the largest chunk of rows."""
        largest = max((side.chunks[0].queries for side in sides), key=len)
        self.dtype = largest.dtype
        self.products = largest.new_empty(len(largest) * TILE_COLUMNS)
        self.logits = self.products.float()  # in float32 the same memory

    def make_logits(self, chunk: Chunk, keys: Tensor, bias: Tensor | None) -> Tile:
        """Compare a chunk's rows with some prototypes (W, D), whose bias is (W,)."""
        shape = len(chunk.queries), len(keys)
        size = shape[0] * shape[1]
        tile = Tile(self.products[:size].view(shape), self.logits[:size].view(shape))
        tile.logits.copy_(torch.mm(chunk.queries, keys.T, out=tile.products))
        if bias is not None:
            tile.logits.add_(bias)
        return tile


def _blocks(side: Side, dtype: torch.dtype) -> Iterator[tuple[slice, Tensor, Tensor | None]]:
    """Cut a side's prototypes into blocks: where they are, the prototypes, their bias."""
    for start in range(0, len(side.prototypes), TILE_COLUMNS):
        span = slice(start, start + TILE_COLUMNS)
        yield span, side.prototypes[span].to(dtype), None if side.bias is None else side.bias[span]


def find_logsumexps(side: Side, scratch: Scratch) -> None:
    """Fill `logsumexp` of a side's chunks, in one sweep over the prototypes.

    What was summed under an older maximum is rescaled (Milakov and Gimelshein 2018, Online
    normalizer calculation for softmax).
    """
    maxima = [torch.full_like(chunk.logsumexp, -torch.inf) for chunk in side.chunks]
    totals = [torch.zeros_like(chunk.logsumexp) for chunk in side.chunks]
    for _, keys, bias in _blocks(side, scratch.dtype):
        for i, chunk in enumerate(side.chunks):
            logits = scratch.make_logits(chunk, keys, bias).logits
            maximum = torch.maximum(maxima[i], logits.amax(dim=1, keepdim=True))
            totals[i].mul_((maxima[i] - maximum).exp_())
            totals[i].add_(logits.sub_(maximum).exp_().sum(dim=1, keepdim=True))
            maxima[i] = maximum
    for chunk, maximum, total in zip(side.chunks, maxima, totals, strict=True):
        torch.add(maximum, total.log_(), out=chunk.logsumexp)


def find_means(student: Side, teacher: Side, scratch: Scratch) -> Tensor:
    """Fill `mean` of all chunks; gives dW, softmax^T cotangents summed over all rows, (K, D)."""
    grad = torch.empty_like(student.prototypes, dtype=torch.float32)
    both = zip(_blocks(student, scratch.dtype), _blocks(teacher, scratch.dtype), strict=True)
    for (span, values, _), (_, teacher_keys, bias) in both:
        grad_block = grad[span].zero_()
        work = [(chunk, values, None) for chunk in student.chunks]
        for chunk, keys, chunk_bias in work + [(c, teacher_keys, bias) for c in teacher.chunks]:
            tile = scratch.make_logits(chunk, keys, chunk_bias)
            probs = tile.products.copy_(tile.logits.sub_(chunk.logsumexp).exp_())
            _add_product(chunk.mean, probs, values)
            _add_product(grad_block, probs.T, chunk.cotangents)
    return grad


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left @ right to a float32 total."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total.add_(left @ right)

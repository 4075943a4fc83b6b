"""Softmax of many rows over all prototypes, a chunk of rows at a time.

A chunk's rows meet the prototypes block by block. Each block's exponentials are made, summed and
multiplied with the prototypes while they are in a cache, under the maximum of their own block, and
kept until the chunk's logsumexp is known; then they are multiplied with what they owe to the
gradient. The unknown scales between a block's maximum and the logsumexp go to the D columns of the
other factor, so no exponential is ever touched to rescale it (Milakov and Gimelshein 2018, Online
normalizer calculation for softmax). Chunks take the same memory, so it does not grow with the
number of rows. Statistics are float32; products are of the queries' dtype.

Shapes: R rows, N of them in a chunk, D columns, K prototypes, W of them in a block.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

CHUNK_BYTES = 96 * 2**20
"""Exponentials that live at once: in bfloat16 the regions of four images and 65536 prototypes."""

BLOCK_BYTES = 8 * 2**20
"""Float32 logits that are worked on at once: near the caches, yet long enough to start threads."""


class Keys(NamedTuple):
    """What logits are made with.

    Attributes:
        prototypes: (K, D), of the products' dtype.
        bias: (K,) float32 added to the logits, or None.
    """

    prototypes: Tensor
    bias: Tensor | None


class Expectation(NamedTuple):
    """What is known of each row's softmax.

    Attributes:
        mean: (R, D) float32, the mean value.
        logsumexp: (R, 1) float32.
    """

    mean: Tensor
    logsumexp: Tensor


class _Block(NamedTuple):
    """Some prototypes, and what a chunk says of them."""

    span: slice
    exps: Tensor  # (N, W), kept until the chunk is done
    logits: Tensor  # (N, W) float32, used again by the next block; in float32 the same memory
    maximum: Tensor  # (N, 1) float32, subtracted from the logits


class Workspace:
    """Large memory that is kept from step to step: fresh pages cost as much as the sums in them."""

    def __init__(self) -> None:
        self._kept: dict[str, Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: Tensor) -> Tensor:
        """Give the memory of this name, of undefined content, with the dtype and device of `like`.

        What was taken under the same name before must not be used any more.
        """
        size = math.prod(shape)
        kept = self._kept.get(name)
        fits = kept is not None and kept.dtype == like.dtype and kept.device == like.device
        if kept is None or not fits or len(kept) < size:
            kept = self._kept[name] = like.new_empty(size)
        return kept[:size].view(shape)


class Sweep:
    """Goes through values (K, D), with memory that all chunks of rows share."""

    def __init__(self, values: Tensor, max_rows: int, workspace: Workspace) -> None:
        """Take memory for chunks of at most `max_rows` rows.

        Args:
            values: (K, D), of the products' dtype.
            max_rows: The most rows that will come at once.
            workspace: Where memory is kept; not shared with another sweep under way.
        """
        self.values = values
        self.gradient = torch.zeros_like(values, dtype=torch.float32)
        K, D = values.shape
        self._max_rows = max(1, min(max_rows, CHUNK_BYTES // (K * values.element_size())))
        self._width = min(K, max(256, BLOCK_BYTES // (4 * self._max_rows) // 256 * 256))
        self._exps = workspace.take("exps", (self._max_rows * K,), values)
        self._is_float32 = values.dtype == torch.float32
        if not self._is_float32:
            size = self._max_rows * self._width
            self._logits = workspace.take("logits", (size,), self.gradient)
            product = (max(self._max_rows, self._width), D)
            self._product = workspace.take("product", product, values)
            self._product32 = workspace.take("product32", product, self.gradient)

    def expect(self, queries: Tensor, keys: Keys, cotangents: Tensor) -> Expectation:
        """Give each row's mean value; adds softmax^T cotangents to the gradient.

        Args:
            queries: (R, D) rows, whose logits are `queries @ prototypes^T + bias`.
            keys: What logits are made with.
            cotangents: (R, D) float32.
        """
        num_chunks = -(-len(queries) // self._max_rows)
        mean = torch.zeros_like(cotangents)
        logsumexp = mean.new_empty(len(mean), 1)
        parts = (x.tensor_split(num_chunks) for x in (queries, cotangents, mean, logsumexp))
        for chunk, chunk_cotangents, *result in zip(*parts, strict=True):
            blocks = self._blocks(len(chunk))
            self._fill(chunk, keys, blocks, Expectation(*result))
            self._add_gradient(blocks, result[1], chunk_cotangents)
        return Expectation(mean, logsumexp)

    def _blocks(self, num_rows: int) -> list[_Block]:
        """Cut the memory into one contiguous piece for each block of prototypes."""
        K, width = len(self.values), self._width
        maxima = self.gradient.new_empty(-(-K // width), num_rows, 1)
        blocks = []
        for start, maximum in zip(range(0, K, width), maxima, strict=True):
            span = slice(start, min(start + width, K))
            size = num_rows * (span.stop - start)
            exps = self._exps[num_rows * start :][:size].view(num_rows, -1)
            logits = exps if self._is_float32 else self._logits[:size].view(num_rows, -1)
            blocks.append(_Block(span, exps, logits, maximum))
        return blocks

    def _fill(self, queries: Tensor, keys: Keys, blocks: list[_Block], result: Expectation) -> None:
        """Fill a chunk's blocks and its result; sums under an older maximum are rescaled."""
        mean, logsumexp = result
        total = torch.zeros_like(logsumexp)
        maximum = torch.full_like(logsumexp, -torch.inf)
        for block in blocks:
            block_total = _exponentiate(queries, keys, block)
            new_maximum = torch.maximum(maximum, block.maximum)
            old, new = (maximum - new_maximum).exp_(), (block.maximum - new_maximum).exp_()
            total.mul_(old).addcmul_(block_total, new)
            product = self._multiply(block.exps, self.values[block.span])
            mean.mul_(old).addcmul_(product, new)
            maximum = new_maximum
        mean.div_(total)
        torch.add(maximum, total.log_(), out=logsumexp)

    def _add_gradient(self, blocks: list[_Block], logsumexp: Tensor, cotangents: Tensor) -> None:
        """Add a chunk's softmax^T cotangents to the gradient."""
        for block in blocks:
            scaled = (cotangents * (block.maximum - logsumexp).exp_()).to(block.exps.dtype)
            if self._is_float32:
                self.gradient[block.span].addmm_(block.exps.T, scaled)
            else:
                self.gradient[block.span].add_(self._multiply(block.exps.T, scaled))

    def _multiply(self, left: Tensor, right: Tensor) -> Tensor:
        """Give left @ right in float32, valid until the next product."""
        if self._is_float32:
            return left @ right
        product = torch.mm(left, right, out=self._product[: len(left)])
        return self._product32[: len(left)].copy_(product)


def _exponentiate(queries: Tensor, keys: Keys, block: _Block) -> Tensor:
    """Write a block's exp(logits - maximum) and maximum; gives the (N, 1) float32 sums."""
    torch.mm(queries, keys.prototypes[block.span].T, out=block.exps)
    logits = block.logits.copy_(block.exps)  # nothing moves where they are the same memory
    if keys.bias is not None:
        logits.add_(keys.bias[block.span])
    torch.amax(logits, dim=1, keepdim=True, out=block.maximum)
    logits.sub_(block.maximum).exp_()
    block.exps.copy_(logits)
    return logits.sum(dim=1, keepdim=True)

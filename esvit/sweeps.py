"""Softmax of many rows over all prototypes, a chunk of rows at a time.

A chunk's rows meet the prototypes block by block. Each block's softmax is made and multiplied with
the prototypes while it is in a cache, as if there were no other block, and kept until the chunk's
logsumexp is known; then it is multiplied with what it owes to the gradient. The unknown scales
between a block's logsumexp and the chunk's go to the D columns of the other factor, so no
probability is ever touched to rescale it (Milakov and Gimelshein 2018, Online normalizer
calculation for softmax). Chunks take the same memory, so it does not grow with the number of rows.
Statistics are float32; products are of the queries' dtype.

Shapes: R rows, N of them in a chunk, D columns, K prototypes, W of them in a block.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from esvit.backbones.linear import multiply
from esvit.head import Prototypes


class Budget(NamedTuple):
    """How much is worked on at once.

    Attributes:
        chunk_size: How many probabilities live at once.
        block_bytes: Float32 logits that do.
        max_width: Prototypes in a block at most.
    """

    chunk_size: int
    block_bytes: int
    max_width: int


CPU_BUDGET = Budget(36 * 2**20, 16 * 2**20, 8192)
"""Chunks of half the rows of four images over 65536 prototypes; blocks near the caches."""

GPU_BUDGET = Budget(64 * 2**20, 128 * 2**20, 65536)
"""Larger, for each operation costs a launch; still a tenth of what 32 images' logits take."""


class Keys(NamedTuple):
    """What rows are compared with, or averaged.

    Attributes:
        prototypes: K of them, float32.
        scales: (K, 1), those of the prototypes, made once.
        bias: (K,) float32 added to the logits, or None.
    """

    prototypes: Prototypes
    scales: Tensor
    bias: Tensor | None

    @classmethod
    def of(cls, prototypes: Prototypes, bias: Tensor | None = None) -> "Keys":
        """Take prototypes without their graph."""
        detached = Prototypes(*(part.detach().float() for part in prototypes))
        return cls(detached, detached.scales, bias)

    def write(self, span: slice, float32: Tensor, out: Tensor) -> Tensor:
        """Write effective prototypes into the first rows of memory.

        Args:
            span: Which prototypes.
            float32: (W, D) or more rows, where they are made; may be the same memory as `out`.
            out: (W, D) or more rows of any dtype.
        """
        scales = self.scales[span]
        made = torch.mul(self.prototypes.directions[span], scales, out=float32[: len(scales)])
        return out[: len(made)].copy_(made)  # nothing moves where they are the same memory


class Rows(NamedTuple):
    """Rows that all meet the same keys.

    Attributes:
        queries: (R, D) of the products' dtype; logits are `queries @ keys^T + bias`.
        keys: What they are compared with.
        cotangents: (R, D) float32, what their softmax gives to the gradient.
    """

    queries: Tensor
    keys: Keys
    cotangents: Tensor

    def split(self, num_chunks: int) -> list["Rows"]:
        """Cut into chunks of nearly equal size."""
        pairs = (x.tensor_split(num_chunks) for x in (self.queries, self.cotangents))
        return [Rows(queries, self.keys, owed) for queries, owed in zip(*pairs, strict=True)]


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
    softmax: Tensor  # (N, W) over this block alone, kept until the chunk is done
    logits: Tensor  # (N, W) float32, used again by the next block; in float32 the same memory
    logsumexp: Tensor  # (N, 1) float32 over this block alone


class Sweep:
    """Goes through values (K, D) with rows, chunk after chunk, in memory that all chunks share.

    That memory ends with the sweep: kept from step to step it would lie idle below the backward
    pass, where a step holds the most.
    """

    def __init__(self, values: Keys, groups: Sequence[Rows]) -> None:
        """Take memory.

        Args:
            values: What is averaged.
            groups: All rows; of one dtype, which is that of the products.
        """
        like = groups[0].queries
        self._counts = counts = [len(rows.queries) for rows in groups]
        K, D = values.prototypes.directions.shape
        self._values = values
        self._gradient = torch.empty_like(values.prototypes.directions)
        shapes = (sum(counts), D), (sum(counts), 1)
        self._found = Expectation(*(self._gradient.new_empty(shape) for shape in shapes))
        self._is_float32 = like.dtype == torch.float32
        budget = CPU_BUDGET if like.device.type == "cpu" else GPU_BUDGET
        num_chunks = -(-sum(counts) * K // budget.chunk_size)
        self._chunks = list(zip(*(rows.split(num_chunks) for rows in groups), strict=True))
        max_rows = sum(-(-count // num_chunks) for count in counts)
        fitting = budget.block_bytes // (4 * max_rows) // 256 * 256
        self._width = min(K, max(256, min(fitting, budget.max_width)))
        # A piece a block finds room among what is kept where one for the whole chunk would not.
        self._softmax = [like.new_empty(max_rows * self._width) for _ in range(0, K, self._width)]
        self._value_block = like.new_empty(self._width, D)
        self._key_block = like.new_empty(self._width, D)
        if not self._is_float32:
            product = (max(max_rows, self._width), D)
            self._logits = self._gradient.new_empty(max_rows * self._width)
            self._product = like.new_empty(product)
            self._product32 = self._gradient.new_empty(product)

    def run(self) -> tuple[Expectation, Tensor]:
        """Give what is known of all rows, group by group, and the (K, D) float32 gradient.

        The gradient is the sum of softmax^T cotangents over all rows.
        """
        mean, logsumexp = (torch.split(x, self._counts) for x in self._found)
        parts = (x.tensor_split(len(self._chunks)) for x in (*mean, *logsumexp))
        for number, (chunk, *into) in enumerate(zip(self._chunks, *parts, strict=True)):
            blocks = self._blocks(sum(len(rows.queries) for rows in chunk))
            found = self._fill(chunk, blocks)
            cotangents = torch.cat([rows.cotangents for rows in chunk])
            self._add_gradient(blocks, found.logsumexp, cotangents, is_first=number == 0)
            sizes = [len(rows.queries) for rows in chunk]
            pieces = [piece for x in found for piece in torch.split(x, sizes)]
            for out, piece in zip(into, pieces, strict=True):
                out.copy_(piece)
        return self._found, self._gradient

    def _blocks(self, num_rows: int) -> list[_Block]:
        """Give each block of prototypes its memory."""
        K, width = len(self._gradient), self._width
        sums = self._gradient.new_empty(-(-K // width), num_rows, 1)
        blocks = []
        for start, memory, logsumexp in zip(range(0, K, width), self._softmax, sums, strict=True):
            span = slice(start, min(start + width, K))
            size = num_rows * (span.stop - start)
            softmax = memory[:size].view(num_rows, -1)
            logits = softmax if self._is_float32 else self._logits[:size].view(num_rows, -1)
            blocks.append(_Block(span, softmax, logits, logsumexp))
        return blocks

    def _fill(self, chunk: Sequence[Rows], blocks: Sequence[_Block]) -> Expectation:
        """Fill a chunk's blocks; the mean over those before is rescaled at each one."""
        logsumexp = torch.full_like(blocks[0].logsumexp, -torch.inf)
        mean = logsumexp.new_zeros(len(logsumexp), self._gradient.shape[1])
        for block in blocks:
            values = self._write(self._values, block.span, self._value_block)
            self._compare(chunk, block, values)
            _normalise(block)
            of_all = torch.logaddexp(logsumexp, block.logsumexp)
            before, here = (logsumexp - of_all).exp_(), (block.logsumexp - of_all).exp_()
            mean.mul_(before).addcmul_(self._multiply(block.softmax, values), here)
            logsumexp = of_all
        return Expectation(mean, logsumexp)

    def _compare(self, chunk: Sequence[Rows], block: _Block, values: Tensor) -> None:
        """Write the logits of a chunk's rows over a block."""
        sizes = [len(rows.queries) for rows in chunk]
        for rows, products in zip(chunk, torch.split(block.softmax, sizes), strict=True):
            is_value = rows.keys is self._values
            keys = values if is_value else self._write(rows.keys, block.span, self._key_block)
            torch.mm(rows.queries, keys.T, out=products)
        block.logits.copy_(block.softmax)  # nothing moves where they are the same memory
        for rows, logits in zip(chunk, torch.split(block.logits, sizes), strict=True):
            if rows.keys.bias is not None:
                logits.add_(rows.keys.bias[block.span])

    def _write(self, keys: Keys, span: slice, out: Tensor) -> Tensor:
        """Write effective prototypes into memory of the products' dtype."""
        return keys.write(span, out if self._is_float32 else self._product32, out)

    def _add_gradient(
        self, blocks: Sequence[_Block], logsumexp: Tensor, cotangents: Tensor, *, is_first: bool
    ) -> None:
        """Add a chunk's softmax^T cotangents to the gradient; the first chunk's are written."""
        for block in blocks:
            scaled = (cotangents * (block.logsumexp - logsumexp).exp_()).to(block.softmax.dtype)
            gradient = self._gradient[block.span]
            if self._is_float32:
                gradient.addmm_(block.softmax.T, scaled, beta=0 if is_first else 1)
            elif is_first:
                gradient.copy_(self._product_of(block.softmax.T, scaled))
            else:
                gradient.add_(self._multiply(block.softmax.T, scaled))

    def _multiply(self, left: Tensor, right: Tensor) -> Tensor:
        """Give left @ right in float32, valid until the next product."""
        if self._is_float32:
            return multiply(left, right.T, None)
        return self._product32[: len(left)].copy_(self._product_of(left, right))

    def _product_of(self, left: Tensor, right: Tensor) -> Tensor:
        """Give left @ right in the products' dtype, valid until the next product."""
        return torch.mm(left, right, out=self._product[: len(left)])


def _normalise(block: _Block) -> None:
    """Turn a block's logits into their softmax."""
    torch.amax(block.logits, dim=1, keepdim=True, out=block.logsumexp)
    torch.softmax(block.logits, dim=1, out=block.logits)
    block.softmax.copy_(block.logits)
    # The largest probability is exp(largest logit - logsumexp).
    block.logsumexp.sub_(block.logits.amax(dim=1, keepdim=True).log_())

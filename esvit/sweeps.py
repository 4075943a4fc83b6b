"""Gradients of cross-entropies over all prototypes, a few images at a time.

A chunk of images meets the prototypes block by block, twice. On the way there each block's softmax
is made, as if there were no other block, and kept; then each row's logsumexp over all blocks is
known, and with it the share that a block has of a row (Milakov and Gimelshein 2018, Online
normalizer calculation for softmax). On the way back, while the last block is still in a cache, each
student row is reduced by the mean of its targets: what is left is the gradient of its logits, which
is multiplied with the prototypes and with the rows. Teacher rows take part in no product but that
of their logits. Chunks take the same memory, so it does not grow with the number of images.

Shapes: B images, n of them in a chunk, S student and T teacher rows of an image, M comparisons
between them; N rows of a chunk; D columns, K prototypes, W of them in a block.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from esvit.blocks import Owed, Softmax, reduce_
from esvit.head import Prototypes
from esvit.products import MixedProducts, Products


class Budget(NamedTuple):
    """How much is worked on at once.

    Attributes:
        chunk_size: How many probabilities live at once; those of one image do however many they
            are, four times as many as a Swin's for a ViT's patches of 16 pixels.
        block_bytes: Float32 logits that do.
        max_width: Prototypes in a block at most.
    """

    chunk_size: int
    block_bytes: int
    max_width: int


CPU_BUDGET = Budget(36 * 2**20, 8 * 2**20, 8192)
"""Chunks of two images with 268 rows over 65536 prototypes; blocks near the caches."""

GPU_BUDGET = Budget(64 * 2**20, 128 * 2**20, 65536)
"""Larger, for each operation costs a launch; still a tenth of what 32 images' logits take."""


class Rows(NamedTuple):
    """Rows that all meet the same prototypes.

    Attributes:
        queries: (B, S or T, D); logits are `queries @ prototypes.weight^T`.
        prototypes: K of them.
    """

    queries: Tensor
    prototypes: Prototypes


class Comparisons(NamedTuple):
    """Which teacher rows of its image each student row is compared with.

    Attributes:
        matches: (B, M) int64, the teacher's row of each comparison, from 0 to T - 1; those of a
            student row are adjacent.
        starts: (S,) int64, where those of each student row begin.
        shares: (M,) float32, what each counts within its student row, 1 in all.
        weights: (S,) float32, what each student row counts.
    """

    matches: Tensor
    starts: Tensor
    shares: Tensor
    weights: Tensor


class Targets(NamedTuple):
    """The teacher's side of all comparisons; nothing here gets a gradient.

    Attributes:
        rows: The teacher's.
        bias: (K,) float32, added to their logits.
        comparisons: Of the student's rows with them.
    """

    rows: Rows
    bias: Tensor
    comparisons: Comparisons


class Found(NamedTuple):
    """What the loss and its gradients are made of.

    Attributes:
        differences: (B, S, D) float32, W^T (q - r): the student's mean prototype less its targets'.
        entropies: (B, S) float32, of the student's distributions q.
        gradient: (K, D) float32, of the effective prototypes.
    """

    differences: Tensor
    entropies: Tensor
    gradient: Tensor


class _Chunk(NamedTuple):
    """Some images, their rows one after the other."""

    images: slice
    student: Tensor  # (N, D) in the products' dtype
    teacher: Tensor  # (N', D) likewise
    owed: Tensor  # (N, D), each student row times its weight
    matches: Tensor  # (n * M,), teacher rows of the chunk
    starts: Tensor  # (N,)
    shares: Tensor  # (n * M,)


class _Block(NamedTuple):
    """Some prototypes, and what a chunk says of them, as if there were no others."""

    span: slice
    student: Tensor  # (N, W), probabilities in the products' dtype
    teacher: Tensor  # (N', W)
    of_student: Softmax
    of_teacher: Softmax


class Sweep:
    """Goes through all prototypes with student and teacher, chunk after chunk, in shared memory.

    That memory ends with the sweep: kept from step to step it would lie idle below both passes of
    the networks.
    """

    def __init__(self, student: Rows, targets: Targets, dtype: torch.dtype) -> None:
        """Take memory.

        Args:
            student: What is compared.
            targets: With what, and how.
            dtype: Of the products; softmax and all sums are float32.
        """
        self._student, (self._teacher, self._bias, self._comparisons) = student, targets
        prototypes, others = (
            Prototypes(*(part.detach().float() for part in rows.prototypes))
            for rows in (student, self._teacher)
        )
        B, S, D = student.queries.shape
        T, K = self._teacher.queries.shape[1], len(prototypes.lengths)
        new = prototypes.lengths.new_empty
        self._found = Found(new(B, S, D), new(B, S), new(K, D))
        budget = CPU_BUDGET if prototypes.lengths.device.type == "cpu" else GPU_BUDGET
        self._num_chunks = -(-B // max(1, budget.chunk_size // (K * (S + T))))
        n = -(-B // self._num_chunks)
        fitting = budget.block_bytes // (4 * n * (S + T)) // 256 * 256
        width = min(K, max(256, min(fitting, budget.max_width)))
        self._spans = [slice(start, min(start + width, K)) for start in range(0, K, width)]
        # A piece a block finds room among what is kept where one for the whole chunk would not.
        self._memory = [new(n * (S + T) * width, dtype=dtype) for _ in self._spans]
        self._products = (
            Products(prototypes, others, width)
            if dtype == torch.float32
            else MixedProducts(prototypes, others, width, num_rows=n * max(S, T), dtype=dtype)
        )

    def run(self) -> Found:
        """Give what is found of all images."""
        for number, chunk in enumerate(self._chunks()):
            places = zip(self._spans, self._memory, strict=True)
            blocks = [self._block(chunk, span, memory) for span, memory in places]
            logsumexp, shares = _over_all([block.of_student for block in blocks])
            _, teacher_shares = _over_all([block.of_teacher for block in blocks])
            mean_logits = torch.stack([block.of_student.mean_logit for block in blocks])
            mean_logit = (shares * mean_logits).sum(dim=0)
            differences = self._found.differences[chunk.images].flatten(0, 1).zero_()
            shared = list(zip(blocks, shares, teacher_shares, strict=True))
            excess = torch.zeros_like(mean_logit)
            for block, share, teacher_share in reversed(shared):
                factors = teacher_share.flatten()[chunk.matches].mul_(chunk.shares)
                owed = Owed(chunk.matches, chunk.starts, factors)
                excess += reduce_(block.student, block.teacher, share, owed)
                gradient = block.student  # is now the gradient of its logits
                self._products.add_rows(
                    differences, gradient, self._products.student_block(block.span)
                )
                self._products.add_prototypes(
                    self._found.gradient[block.span], gradient, chunk.owed, is_first=number == 0
                )
            # Rounded targets do not sum to one; what they lack counts as the student's own.
            entropies = self._found.entropies[chunk.images]
            entropies.copy_((logsumexp - mean_logit * (1 + excess)).view_as(entropies))
        return self._found

    def _chunks(self) -> Iterator[_Chunk]:
        """Cut the images into chunks of nearly equal size."""
        matches, starts, shares, weights = self._comparisons
        T, M = self._teacher.queries.shape[1], matches.shape[1]
        end = 0
        for part in matches.tensor_split(self._num_chunks):
            n = len(part)
            images = slice(end, end := end + n)
            number = torch.arange(n, device=part.device).unsqueeze(1)  # (n, 1)
            student = self._student.queries[images].float()
            yield _Chunk(
                images,
                student=self._side_by_side(student),
                teacher=self._side_by_side(self._teacher.queries[images]),
                owed=self._side_by_side(student * weights.unsqueeze(1)),
                matches=(part + T * number).flatten(),
                starts=(starts + M * number).flatten(),
                shares=shares.repeat(n),
            )

    def _side_by_side(self, rows: Tensor) -> Tensor:
        """Put the rows of some images one after the other, in the products' dtype."""
        return rows.flatten(0, 1).to(self._products.dtype)

    def _block(self, chunk: _Chunk, span: slice, memory: Tensor) -> _Block:
        """Make a chunk's softmax over a block."""
        products, width = self._products, span.stop - span.start
        counts = [len(chunk.student), len(chunk.teacher)]
        both = memory[: sum(counts) * width].view(-1, width)
        student, teacher = torch.split(both, counts)
        of_student = products.softmax(chunk.student, products.student_block(span), None, student)
        of_teacher = products.softmax(
            chunk.teacher, products.teacher_block(span), self._bias[span], teacher
        )
        return _Block(span, student, teacher, of_student, of_teacher)


def _over_all(blocks: list[Softmax]) -> tuple[Tensor, Tensor]:
    """Give the logsumexp (N, 1) over all blocks, and each block's share of it (blocks, N, 1)."""
    stacked = torch.stack([block.logsumexp for block in blocks])
    logsumexp = stacked.logsumexp(dim=0)
    return logsumexp, (stacked - logsumexp).exp_()

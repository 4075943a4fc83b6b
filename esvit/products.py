"""Products of rows with blocks of prototypes, whose results are float32 whatever they are made in.

Shapes: N rows, D columns, K prototypes, W of them in a block.
"""

import torch
from torch import Tensor

from esvit.backbones.linear import multiply, multiply_into
from esvit.blocks import Softmax, add_, softmax
from esvit.head import Prototypes
from esvit.native import layers as native
from esvit.weight_norm import write_weight


class Products:
    """Products in float32."""

    dtype = torch.float32

    def __init__(self, student: Prototypes, teacher: Prototypes, width: int) -> None:
        """Take memory.

        Args:
            student: K of them, float32, without a graph.
            teacher: As many, likewise.
            width: W at most.
        """
        self.student, self.teacher = student, teacher
        self._block = self._memory(width, student.directions.shape[1])

    def student_block(self, span: slice) -> Tensor:
        """Give effective prototypes of the student (W, D), valid until others are asked for."""
        return _write(self.student, span, self._block)

    def teacher_block(self, span: slice) -> Tensor:
        """Give the teacher's."""
        return _write(self.teacher, span, self._block)

    def softmax(
        self, queries: Tensor, prototypes: Tensor, bias: Tensor | None, out: Tensor
    ) -> Softmax:
        """Write the softmax of logits over a block.

        Args:
            queries: (N, D).
            prototypes: (W, D).
            bias: (W,) float32 added to the logits in float32, or None.
            out: (N, W), for the probabilities.
        """
        return softmax(multiply_into(out, queries, prototypes), bias, out)

    def add_rows(self, sums: Tensor, left: Tensor, right: Tensor) -> None:
        """Add left (N, W) @ right (W, D) to (N, D)."""
        sums.add_(multiply(left, right.T, None))

    def add_prototypes(self, sums: Tensor, left: Tensor, right: Tensor, *, is_first: bool) -> None:
        """Add left (N, W)^T @ right (N, D) to (W, D), or write it where it is the first."""
        sums.addmm_(left.T, right, beta=0 if is_first else 1)

    def _memory(self, *shape: int) -> Tensor:
        return self.student.lengths.new_empty(shape, dtype=self.dtype)


class MixedProducts(Products):
    """Products of a type with fewer digits, such as bfloat16."""

    def __init__(
        self,
        student: Prototypes,
        teacher: Prototypes,
        width: int,
        *,
        num_rows: int,
        dtype: torch.dtype,
    ) -> None:
        """Take memory; the student's prototypes are written once, they are asked for twice.

        Args:
            student: K of them, float32, without a graph.
            teacher: As many, likewise.
            width: W at most.
            num_rows: N of one network at most.
            dtype: Of the products.
        """
        self.dtype = dtype
        super().__init__(student, teacher, width)
        K, D = student.directions.shape
        self._product = self._memory(num_rows, D)
        self._all_student = self._memory(K, D)
        for start in range(0, K, width):
            span = slice(start, start + width)
            _write(student, span, self._all_student[span])

    def student_block(self, span: slice) -> Tensor:
        """As above, valid for good."""
        return self._all_student[span]

    def add_rows(self, sums: Tensor, left: Tensor, right: Tensor) -> None:
        """As above."""
        add_(sums, torch.mm(left, right, out=self._product[: len(left)]))

    def add_prototypes(self, sums: Tensor, left: Tensor, right: Tensor, *, is_first: bool) -> None:
        """As above."""
        if native.can_multiply_turned(left, right):
            native.multiply_turned(left, right, sums, is_first=is_first)
            return
        product = torch.mm(left.T, right)
        sums.copy_(product) if is_first else sums.add_(product)


def _write(prototypes: Prototypes, span: slice, out: Tensor) -> Tensor:
    """Write some effective prototypes into the first rows of memory."""
    some = Prototypes(*(part[span] for part in prototypes))
    return write_weight(some, out[: len(some.lengths)])

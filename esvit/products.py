"""Products of rows with blocks of prototypes, whose results are float32 whatever they are made in.

Shapes: N rows, D columns, K prototypes, W of them in a block.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from esvit.backbones.linear import multiply
from esvit.head import Prototypes


class ScaledPrototypes(NamedTuple):
    """Prototypes and what makes them effective.

    Attributes:
        prototypes: K of them, float32.
        scales: (K, 1), those of the prototypes, made once.
    """

    prototypes: Prototypes
    scales: Tensor

    @classmethod
    def of(cls, prototypes: Prototypes) -> "ScaledPrototypes":
        """Take prototypes without their graph."""
        detached = Prototypes(*(part.detach().float() for part in prototypes))
        return cls(detached, detached.scales)

    def write(self, span: slice, out: Tensor) -> Tensor:
        """Write effective prototypes into the first rows of (W, D) or more, float32."""
        scales = self.scales[span]
        return torch.mul(self.prototypes.directions[span], scales, out=out[: len(scales)])


class Products:
    """Products in float32."""

    dtype = torch.float32

    def __init__(self, student: ScaledPrototypes, teacher: ScaledPrototypes, width: int) -> None:
        """Take memory.

        Args:
            student: K prototypes.
            teacher: As many.
            width: W at most.
        """
        self.student, self.teacher = student, teacher
        self._block = self._memory(width, student.prototypes.directions.shape[1])

    def student_block(self, span: slice) -> Tensor:
        """Give effective prototypes of the student (W, D), valid until others are asked for."""
        return self.student.write(span, self._block)

    def teacher_block(self, span: slice) -> Tensor:
        """Give the teacher's."""
        return self.teacher.write(span, self._block)

    def softmax(
        self, queries: Tensor, prototypes: Tensor, bias: Tensor | None, out: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Write the softmax of logits over a block.

        Args:
            queries: (N, D).
            prototypes: (W, D).
            bias: (W,) float32 added to the logits, or None.
            out: (N, W), for the probabilities.

        Returns:
            Logits and probabilities (N, W) in float32, valid until the next call.
        """
        logits = multiply(queries, prototypes, bias)
        return logits, torch.softmax(logits, dim=1, out=out)

    def add_rows(self, sums: Tensor, left: Tensor, right: Tensor) -> None:
        """Add left (N, W) @ right (W, D) to (N, D)."""
        sums.add_(multiply(left, right.T, None))

    def add_prototypes(self, sums: Tensor, left: Tensor, right: Tensor, *, is_first: bool) -> None:
        """Add left (N, W)^T @ right (N, D) to (W, D), or write it where it is the first."""
        sums.addmm_(left.T, right, beta=0 if is_first else 1)

    def _memory(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return self.student.scales.new_empty(shape, dtype=dtype)


class MixedProducts(Products):
    """Products of a type with fewer digits, such as bfloat16."""

    def __init__(
        self,
        student: ScaledPrototypes,
        teacher: ScaledPrototypes,
        width: int,
        *,
        num_rows: int,
        dtype: torch.dtype,
    ) -> None:
        """Take memory; the student's prototypes are written once, they are asked for twice.

        Args:
            student: K prototypes.
            teacher: As many.
            width: W at most.
            num_rows: N of one network at most.
            dtype: Of the products.
        """
        super().__init__(student, teacher, width)
        self.dtype = dtype
        K, D = student.prototypes.directions.shape
        self._teacher_block = self._memory(width, D, dtype=dtype)
        self._logits, self._probs = self._memory(num_rows * width), self._memory(num_rows * width)
        self._product = self._memory(max(num_rows, width), D, dtype=dtype)
        self._product32 = self._memory(max(num_rows, width), D)
        self._all_student = self._memory(K, D, dtype=dtype)
        for start in range(0, K, width):
            span = slice(start, start + width)
            self._all_student[span].copy_(super().student_block(span))

    def student_block(self, span: slice) -> Tensor:
        """As above, valid for good."""
        return self._all_student[span]

    def teacher_block(self, span: slice) -> Tensor:
        """As above."""
        made = super().teacher_block(span)
        return self._teacher_block[: len(made)].copy_(made)

    def softmax(
        self, queries: Tensor, prototypes: Tensor, bias: Tensor | None, out: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As above; the bias is added in float32."""
        torch.mm(queries, prototypes.T, out=out)
        logits, probs = (x[: out.numel()].view(out.shape) for x in (self._logits, self._probs))
        logits.copy_(out)
        if bias is not None:
            logits.add_(bias)
        out.copy_(torch.softmax(logits, dim=1, out=probs))
        return logits, probs

    def add_rows(self, sums: Tensor, left: Tensor, right: Tensor) -> None:
        """As above."""
        product = torch.mm(left, right, out=self._product[: len(left)])
        sums.add_(self._product32[: len(left)].copy_(product))

    def add_prototypes(self, sums: Tensor, left: Tensor, right: Tensor, *, is_first: bool) -> None:
        """As above."""
        product = torch.mm(left.T, right, out=self._product[: len(sums)])
        if is_first:
            sums.copy_(product)
        else:
            sums.add_(self._product32[: len(sums)].copy_(product))

"""What a sweep over prototypes does between its products, by our kernels (`cross_entropy.cpp`).

Shapes: N rows, W prototypes of a block, D columns, M comparisons.
"""

import torch
from torch import Tensor

from esvit.native.library import address, is_bfloat16, kernel, takes


def can_work_on(rows: Tensor) -> bool:
    """Whether the kernels take rows like these."""
    return takes(rows, torch.float32, torch.bfloat16)


def softmax(logits: Tensor, bias: Tensor | None, out: Tensor) -> tuple[Tensor, Tensor]:
    """Write the softmax of logits + bias.

    Args:
        logits: (N, W), float32 or bfloat16.
        bias: (W,) float32, or None.
        out: (N, W), of the same type; may be the logits.

    Returns:
        The logsumexp of the sums and their mean under the softmax, (N, 1) float32.
    """
    N, W = logits.shape
    logsumexp, mean = logits.new_empty(2, N, 1, dtype=torch.float32)
    kernel("esvit_softmax", "pppppnni")(
        *map(address, (logits, bias, out, logsumexp, mean)), N, W, is_bfloat16(logits)
    )
    return logsumexp, mean


def reduce_(
    student: Tensor, teacher: Tensor, share: Tensor, factors: Tensor, where: tuple[Tensor, Tensor]
) -> Tensor:
    """Multiply student rows by their shares and take their targets off, in place.

    Args:
        student: (N, W), float32 or bfloat16.
        teacher: (any number, W), of the same type.
        share: (N, 1) float32.
        factors: (M,) float32, what each comparison's teacher row is multiplied with.
        where: Each comparison's teacher row (M,), and where those of each student row begin (N,).

    Returns:
        (N, 1) float32 sums of what is left, as it is rounded.
    """
    (matches, starts), (N, W) = where, student.shape
    excess = torch.empty_like(share)
    kernel("esvit_reduce", "pppppppnnni")(
        *map(address, (student, teacher, share, starts, matches, factors, excess)),
        *(N, len(matches), W, is_bfloat16(student)),
    )
    return excess


def add_(sums: Tensor, added: Tensor) -> Tensor:
    """Add (N, D) bfloat16 to sums in float32."""
    kernel("esvit_add", "ppnn")(address(sums), address(added), *sums.shape)
    return sums

"""What a sweep does with a block of logits between its products, in one pass by our kernels.

Shapes: N rows of one network, N' of the other, W prototypes of a block, M comparisons.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from esvit.native import cross_entropy as native


class Softmax(NamedTuple):
    """What is known of the softmax of some rows besides their probabilities.

    Attributes:
        logsumexp: (N, 1) float32.
        mean_logit: (N, 1) float32, the mean of a row's logits under its probabilities.
    """

    logsumexp: Tensor
    mean_logit: Tensor


def softmax(logits: Tensor, bias: Tensor | None, out: Tensor) -> Softmax:
    """Write the softmax of logits + bias.

    Args:
        logits: (N, W), not to be used again.
        bias: (W,) float32, or None.
        out: (N, W) of the same dtype, for the probabilities; may be the logits.
    """
    if native.can_work_on(logits):
        return Softmax(*native.softmax(logits, bias, out))
    logits = logits.float()
    if bias is not None:
        logits = logits.add_(bias)
    probs = torch.softmax(logits, dim=1)
    # The largest probability is exp(largest logit - logsumexp).
    logsumexp = logits.amax(dim=1, keepdim=True) - probs.amax(dim=1, keepdim=True).log_()
    mean_logit = logits.mul_(probs).sum(dim=1, keepdim=True)
    out.copy_(probs)  # last: it may be the logits
    return Softmax(logsumexp, mean_logit)


class Owed(NamedTuple):
    """Which teacher rows are taken off which student rows.

    Attributes:
        matches: (M,) int64, the teacher's row of each comparison; those of a student row adjacent.
        starts: (N,) int64, where those of each student row begin.
        factors: (M,) float32, what each teacher row is multiplied with.
    """

    matches: Tensor
    starts: Tensor
    factors: Tensor


def reduce_(student: Tensor, teacher: Tensor, share: Tensor, owed: Owed) -> Tensor:
    """Multiply student rows by their shares and take off what is owed, in place.

    Args:
        student: (N, W).
        teacher: (N', W), of the same dtype.
        share: (N, 1) float32.
        owed: By the student.

    Returns:
        (N, 1) float32 sums of what is left, as it is rounded.
    """
    if native.can_work_on(student):
        return native.reduce_(student, teacher, share, owed.factors, (owed.matches, owed.starts))
    # Gathers, scales and sums teacher rows in one pass.
    targets = F.embedding_bag(
        owed.matches,
        teacher,
        owed.starts,
        mode="sum",
        per_sample_weights=owed.factors.to(teacher.dtype),
    )
    student.mul_(share.to(student.dtype)).sub_(targets)
    return student.sum(dim=1, keepdim=True, dtype=torch.float32)


def add_(sums: Tensor, added: Tensor) -> Tensor:
    """Add what may be of another dtype to sums (N, D) float32."""
    if added.dtype == torch.bfloat16 and native.can_work_on(added):
        return native.add_(sums, added)
    return sums.add_(added)

"""The numbers of `loss.py` without ever storing logits, with its own backward.

Both tasks are one sum: over pairs of a student row i and a teacher row t with weight a_it, the
cross-entropy of the teacher's distribution p_t and the student's softmax of s_i = W x_i / tau.
Since p_t sums to one, that cross-entropy is logsumexp(s_i) - p_t . s_i, and what is left is linear:

    loss   = sum_i n_i logsumexp(s_i) - sum_t <y_t, z_t> / tau,     n_i = sum_t a_it
    dx_i   = (n_i e_i - sum_t a_it y_t) / tau
    dW     = (sum_i q_i n_i x_i^T - sum_t p_t z_t^T) / tau

with q_i the student's distribution, e_i = W^T q_i and y_t = W^T p_t the mean prototypes under q_i
and p_t, and z_t = sum_i a_it x_i. So student and teacher rows need the same three products with the
prototypes (`sweeps.py`, which never holds all logits), the gathering and summing of targets happens
among D columns instead of K, and the gradient is ready when the loss is: nothing else is kept for
the backward pass.

Shapes: V views, B images, L regions of a view, R and Q student and teacher rows (the sums of B * L
over the views), N rows of one view, D columns of the bottleneck, K prototypes.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from esvit.head import Prototypes
from esvit.loss import Loss, match_regions, region_head, split_views, view_pairs
from esvit.model import Projections
from esvit.sweeps import Keys, Rows, Sweep


class Pair(NamedTuple):
    """One student view against one teacher view.

    Attributes:
        rows: Where the view's N rows lie among the student's.
        matches: (N,) int64, for each of them the teacher row it is compared with.
        weight: a_it, how much each comparison counts.
    """

    rows: slice
    matches: Tensor
    weight: float


class Targets(NamedTuple):
    """The teacher's side of the loss; nothing here gets a gradient.

    Attributes:
        bottleneck: (Q, D) of the teacher.
        prototypes: K of the teacher.
        center: (1, K).
        temperature: The teacher's.
        pairs: What is compared with what.
    """

    bottleneck: Tensor
    prototypes: Prototypes
    center: Tensor
    temperature: float
    pairs: list[Pair]


def fused_cross_entropy(
    bottleneck: Tensor, prototypes: Prototypes, temperature: float, targets: Targets
) -> Tensor:
    """Weighted sum of cross-entropies between student and teacher rows.

    Args:
        bottleneck: (R, D) of the student.
        prototypes: K of the student.
        temperature: The student's.
        targets: The teacher's side.

    Returns:
        Float32 scalar, differentiable once in `bottleneck` and `prototypes`.
    """
    # torch leaves `apply` untyped.
    loss: Tensor = _FusedCrossEntropy.apply(bottleneck, *prototypes, temperature, targets)  # type: ignore[no-untyped-call]
    return loss


def pair_views(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[Pair]:
    """Match every student view's regions with every other teacher view's.

    Args:
        student: (B, L, C) region features of each student view.
        teacher: (B, L, C) region features of each teacher view, the first of the student's.

    Returns:
        The pairs of the mean over pairs of views: all weights together are 1.
    """
    starts = [0, *accumulate(len(view) * view.shape[1] for view in student)]
    teacher_starts = [0, *accumulate(len(view) * view.shape[1] for view in teacher)]
    numbers = view_pairs(len(student), len(teacher))
    pairs = []
    for t, s in numbers:
        B, T, _ = teacher[t].shape
        images = torch.arange(B, device=teacher[t].device).unsqueeze(1)  # (B, 1)
        matches = match_regions(student[s], teacher[t]) + T * images + teacher_starts[t]
        rows = slice(starts[s], starts[s + 1])
        pairs.append(Pair(rows, matches.flatten(), 1 / (len(numbers) * matches.numel())))
    return pairs


class FusedLoss(Loss):
    """`Loss` in a fraction of its memory and time; the same arguments, state and numbers."""

    def view_task(
        self, student: Projections, teacher: Projections, teacher_temperature: float
    ) -> Tensor:
        """Mean cross-entropy over all pairs of views: a view is its own only region."""
        num_student, num_teacher = len(student.regions_per_view), len(teacher.regions_per_view)
        targets = Targets(
            teacher.view,
            teacher.view_prototypes,
            self.center,
            teacher_temperature,
            pair_views(
                split_views(student.view.detach(), (1,) * num_student),
                split_views(teacher.view, (1,) * num_teacher),
            ),
        )
        return fused_cross_entropy(
            student.view, student.view_prototypes, self.student_temperature, targets
        )

    def region_task(
        self, student: Projections, teacher: Projections, teacher_temperature: float
    ) -> Tensor:
        """Mean cross-entropy over all pairs of views of their matched regions."""
        rows, prototypes = region_head(student)
        teacher_rows, teacher_prototypes = region_head(teacher)
        targets = Targets(
            teacher_rows,
            teacher_prototypes,
            self.center_grid,
            teacher_temperature,
            pair_views(
                split_views(student.region_features.detach(), student.regions_per_view),
                split_views(teacher.region_features, teacher.regions_per_view),
            ),
        )
        return fused_cross_entropy(rows, prototypes, self.student_temperature, targets)


class _FusedCrossEntropy(torch.autograd.Function):
    """Loss and gradient in one go; backward only takes the latter through the weight norm."""

    @staticmethod
    def forward(
        ctx: Any,  # torch gives contexts no public type
        bottleneck: Tensor,
        directions: Tensor,
        lengths: Tensor,
        temperature: float,
        targets: Targets,
    ) -> Tensor:
        """Make the loss and its gradients in the rows and the effective prototypes."""
        device = bottleneck.device.type
        dtype = (
            torch.get_autocast_dtype(device)
            if torch.is_autocast_enabled(device)
            else bottleneck.dtype
        )
        prototypes = Prototypes(directions, lengths)
        with torch.autocast(device, enabled=False):
            loss, grad_rows, grad_weight = _loss_and_gradients(
                bottleneck.float(), prototypes, temperature, targets, dtype
            )
        ctx.save_for_backward(directions, lengths)
        ctx.gradients = grad_rows.to(bottleneck.dtype), grad_weight
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # as above
        """Scale the gradients by the loss's own; in place, they are used once."""
        if ctx.gradients is None:
            raise RuntimeError("the fused loss keeps its gradients for one backward pass only")
        (grad_rows, grad_weight), ctx.gradients = ctx.gradients, None
        prototypes = Prototypes(*ctx.saved_tensors)
        grad_directions, grad_lengths = _through_weight_norm_(grad_weight, prototypes, grad_loss)
        return grad_rows.mul_(grad_loss), grad_directions, grad_lengths, None, None


def _loss_and_gradients(
    rows: Tensor, prototypes: Prototypes, temperature: float, targets: Targets, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The three sums of the module's docstring, with products in `dtype`."""
    others = targets.bottleneck.float()
    totals = rows.new_zeros(len(rows), 1)  # n, (R, 1)
    owed = torch.zeros_like(others)  # z / -tau, (Q, D)
    for pair in targets.pairs:
        totals[pair.rows] += pair.weight
        owed.index_add_(0, pair.matches, rows[pair.rows], alpha=-pair.weight / temperature)

    values = Keys.of(prototypes)
    keys = Keys.of(targets.prototypes, targets.center.flatten() / -targets.temperature)
    groups = (
        Rows((rows / temperature).to(dtype), values, rows * (totals / temperature)),
        Rows((others / targets.temperature).to(dtype), keys, owed),
    )
    found, grad_weight = Sweep(values, groups).run()
    means, target_means = torch.split(found.mean, [len(rows), len(others)])
    loss = (totals * found.logsumexp[: len(rows)]).sum() + (target_means * owed).sum()
    grad_rows = means * (totals / temperature)
    for pair in targets.pairs:
        target = target_means[pair.matches]  # (N, D)
        grad_rows[pair.rows].sub_(target, alpha=pair.weight / temperature)
    return loss, grad_rows, grad_weight


def _through_weight_norm_(
    gradient: Tensor, prototypes: Prototypes, factor: Tensor
) -> tuple[Tensor, Tensor]:
    """Turn the gradient of effective prototypes, in place, into that of directions; and lengths.

    With u = v / |v| and w = g u: dg = u . dw and dv = (g / |v|) (dw - u dg).
    """
    grad_lengths = torch.empty_like(prototypes.lengths)
    parts = (torch.split(x, 4096) for x in (gradient, grad_lengths, *prototypes))
    for block, grad_length, direction, length in zip(*parts, strict=True):
        norm = torch.linalg.vector_norm(direction, dim=1, keepdim=True)
        along = (block * direction).sum(dim=1, keepdim=True) / norm
        block.addcmul_(direction, along / norm, value=-1).mul_(factor * length / norm)
        torch.mul(along, factor, out=grad_length)
    return gradient, grad_lengths

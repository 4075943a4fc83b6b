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

from esvit.loss import Loss, match_regions, region_head, split_views, view_pairs
from esvit.model import Projections
from esvit.sweeps import Keys, Sweep, Workspace


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
        prototypes: (K, D) of the teacher.
        center: (1, K).
        temperature: The teacher's.
        pairs: What is compared with what.
        workspace: Memory that is kept from call to call.
    """

    bottleneck: Tensor
    prototypes: Tensor
    center: Tensor
    temperature: float
    pairs: list[Pair]
    workspace: Workspace


def fused_cross_entropy(
    bottleneck: Tensor, prototypes: Tensor, temperature: float, targets: Targets
) -> Tensor:
    """Weighted sum of cross-entropies between student and teacher rows.

    Args:
        bottleneck: (R, D) of the student.
        prototypes: (K, D) of the student.
        temperature: The student's.
        targets: The teacher's side.

    Returns:
        Float32 scalar, differentiable once in `bottleneck` and `prototypes`.
    """
    loss: Tensor = _FusedCrossEntropy.apply(bottleneck, prototypes, temperature, targets)  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
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

    def __init__(
        self,
        num_prototypes: int,
        *,
        view_weight: float = 0.5,
        region_weight: float = 0.5,
        student_temperature: float = 0.1,
        center_momentum: float = 0.9,
    ) -> None:
        """Take what `Loss` takes."""
        super().__init__(
            num_prototypes,
            view_weight=view_weight,
            region_weight=region_weight,
            student_temperature=student_temperature,
            center_momentum=center_momentum,
        )
        self.workspace = Workspace()

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
            self.workspace,
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
            self.workspace,
        )
        return fused_cross_entropy(rows, prototypes, self.student_temperature, targets)


class _FusedCrossEntropy(torch.autograd.Function):
    """Loss and gradient in one go; backward only scales what forward has made."""

    @staticmethod
    def forward(
        ctx: Any,  # torch gives contexts no public type
        bottleneck: Tensor,
        prototypes: Tensor,
        temperature: float,
        targets: Targets,
    ) -> Tensor:
        """Make the loss and its gradients."""
        device = bottleneck.device.type
        dtype = (
            torch.get_autocast_dtype(device)
            if torch.is_autocast_enabled(device)
            else bottleneck.dtype
        )
        with torch.autocast(device, enabled=False):
            loss, grad_rows, grad_prototypes = _loss_and_gradients(
                bottleneck.float(), prototypes, temperature, targets, dtype
            )
        ctx.gradients = grad_rows.to(bottleneck.dtype), grad_prototypes.to(prototypes.dtype)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # as above
        """Scale the gradients by the loss's own; in place, they are used once."""
        if ctx.gradients is None:
            raise RuntimeError("the fused loss keeps its gradients for one backward pass only")
        (grad_rows, grad_prototypes), ctx.gradients = ctx.gradients, None
        return grad_rows.mul_(grad_loss), grad_prototypes.mul_(grad_loss), None, None


def _loss_and_gradients(
    rows: Tensor, prototypes: Tensor, temperature: float, targets: Targets, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """The three sums of the module's docstring, with products in `dtype`."""
    others = targets.bottleneck.float()
    totals = rows.new_zeros(len(rows), 1)  # n, (R, 1)
    owed = torch.zeros_like(others)  # z / -tau, (Q, D)
    for pair in targets.pairs:
        totals[pair.rows] += pair.weight
        owed.index_add_(0, pair.matches, rows[pair.rows], alpha=-pair.weight / temperature)

    values = _cast("values", prototypes, dtype, targets.workspace)
    sweep = Sweep(values, max(len(rows), len(others)), targets.workspace)
    queries = (rows / temperature).to(dtype)
    means, logsumexps = sweep.expect(queries, Keys(values, None), queries * totals)
    teacher_prototypes = _cast("keys", targets.prototypes, dtype, targets.workspace)
    keys = Keys(teacher_prototypes, targets.center.flatten() / -targets.temperature)
    target_means, _ = sweep.expect((others / targets.temperature).to(dtype), keys, owed)

    loss = (totals * logsumexps).sum() + (target_means * owed).sum()
    grad_rows = means.mul_(totals / temperature)
    for pair in targets.pairs:
        target = target_means[pair.matches]  # (N, D)
        grad_rows[pair.rows].sub_(target, alpha=pair.weight / temperature)
    return loss, grad_rows, sweep.gradient


def _cast(name: str, values: Tensor, dtype: torch.dtype, workspace: Workspace) -> Tensor:
    """Give (K, D) values in another dtype, in kept memory; the same values if they have it."""
    if values.dtype == dtype:
        return values.detach()
    return workspace.take(name, tuple(values.shape), values.new_empty(0, dtype=dtype)).copy_(values)

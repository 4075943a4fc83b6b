"""The numbers of `loss.py` without ever storing logits, with its own backward.

Both tasks are one sum: over pairs of a student row i and a teacher row t with weight a_it, the
cross-entropy of the teacher's distribution p_t and the student's softmax of s_i = W x_i / tau.
Since p_t sums to one, that cross-entropy is logsumexp(s_i) - p_t . s_i, and what is left is linear:

    loss   = sum_i n_i logsumexp(s_i) - sum_t <y_t, z_t> / tau,     n_i = sum_t a_it
    dx_i   = (n_i e_i - sum_t a_it y_t) / tau
    dW     = (sum_i q_i n_i x_i^T - sum_t p_t z_t^T) / tau

with q_i the student's distribution, e_i = W^T q_i and y_t = W^T p_t the mean prototypes under q_i
and p_t, and z_t = sum_i a_it x_i. So student and teacher rows need the same three products with the
prototypes, the gathering and summing of targets happens among D columns instead of K,
and the gradient is ready when the loss is: nothing else is kept for the backward pass.

How a softmax over all prototypes is gone through without storing it is `sweeps.py`.

Shapes: B images, S and T student and teacher rows (regions of all views) of an image, D columns of
the bottleneck, K prototypes.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from esvit.loss import Loss, match_regions, region_head, split_views, view_pairs
from esvit.model import Projections
from esvit.sweeps import Scratch, find_logsumexps, find_means, make_side


class Targets(NamedTuple):
    """The teacher's side of the loss; nothing here gets a gradient.

    Attributes:
        bottleneck: (B, T, D) of the teacher.
        prototypes: (K, D) of the teacher.
        center: (1, K).
        temperature: The teacher's.
        weights: (B, S, T), a_it: how much each pair of rows counts.
    """

    bottleneck: Tensor
    prototypes: Tensor
    center: Tensor
    temperature: float
    weights: Tensor


def fused_cross_entropy(
    bottleneck: Tensor, prototypes: Tensor, temperature: float, targets: Targets
) -> Tensor:
    """Weighted sum of cross-entropies between student and teacher rows.

    Args:
        bottleneck: (B, S, D) of the student.
        prototypes: (K, D) of the student.
        temperature: The student's.
        targets: The teacher's side.

    Returns:
        Float32 scalar, differentiable once in `bottleneck` and `prototypes`.
    """
    loss: Tensor = _FusedCrossEntropy.apply(bottleneck, prototypes, temperature, targets)  # type: ignore[no-untyped-call]  # torch leaves `apply` untyped
    return loss


def assignment(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Say how much each pair of rows counts in the mean over pairs of views.

    Args:
        student: (B, L, C) region features of each student view.
        teacher: (B, L, C) region features of each teacher view, the first of the student's.

    Returns:
        (B, S, T) float32: in each student row one entry for each other teacher view, at the match.
    """
    shares = [
        view.new_full((len(view), view.shape[1]), 1 / view[..., 0].numel(), dtype=torch.float32)
        for view in student
    ]
    num_pairs = len(view_pairs(len(student), len(teacher)))
    rows = torch.cat(tuple(student), dim=1)
    blocks = []
    for index, view in enumerate(teacher):
        share = [torch.zeros_like(s) if i == index else s / num_pairs for i, s in enumerate(shares)]
        block = view.new_zeros(*rows.shape[:2], view.shape[1], dtype=torch.float32)
        match = match_regions(rows, view).unsqueeze(-1)
        blocks.append(block.scatter_(-1, match, torch.cat(share, dim=1).unsqueeze(-1)))
    return torch.cat(blocks, dim=-1)


class FusedLoss(Loss):
    """`Loss` in a fraction of its memory and time; the same arguments, state and numbers."""

    def view_task(
        self, student: Projections, teacher: Projections, teacher_temperature: float
    ) -> Tensor:
        """Mean cross-entropy over all pairs of views: a view is its own only region."""
        student_views = split_views(student.view, (1,) * len(student.regions_per_view))
        teacher_views = split_views(teacher.view, (1,) * len(teacher.regions_per_view))
        targets = Targets(
            torch.cat(teacher_views, dim=1).detach(),
            teacher.view_prototypes.detach(),
            self.center,
            teacher_temperature,
            assignment(
                [torch.ones_like(view[..., :1]) for view in student_views],
                [torch.ones_like(view[..., :1]) for view in teacher_views],
            ),
        )
        rows = torch.cat(student_views, dim=1)  # (B, V, D)
        return fused_cross_entropy(rows, student.view_prototypes, self.student_temperature, targets)

    def region_task(
        self, student: Projections, teacher: Projections, teacher_temperature: float
    ) -> Tensor:
        """Mean cross-entropy over all pairs of views of their matched regions."""
        student_bottleneck, student_prototypes = region_head(student)
        teacher_bottleneck, teacher_prototypes = region_head(teacher)
        teacher_views = split_views(teacher_bottleneck, teacher.regions_per_view)
        targets = Targets(
            torch.cat(teacher_views, dim=1).detach(),
            teacher_prototypes.detach(),
            self.center_grid,
            teacher_temperature,
            assignment(
                split_views(student.region_features, student.regions_per_view),
                split_views(teacher.region_features, teacher.regions_per_view),
            ),
        )
        rows = torch.cat(split_views(student_bottleneck, student.regions_per_view), dim=1)
        return fused_cross_entropy(rows, student_prototypes, self.student_temperature, targets)


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
    weights = targets.weights
    totals = weights.sum(dim=-1, keepdim=True)  # n, (B, S, 1)
    gathered = weights.transpose(1, 2) @ rows  # z, (B, T, D)
    student = make_side(rows / temperature, totals * rows / temperature, prototypes, dtype)
    teacher = make_side(
        targets.bottleneck.float() / targets.temperature,
        gathered / -temperature,
        targets.prototypes,
        dtype,
        targets.center.flatten() / -targets.temperature,
    )
    scratch = Scratch(student, teacher)
    find_logsumexps(student, scratch)
    find_logsumexps(teacher, scratch)
    grad_prototypes = find_means(student, teacher, scratch)

    student_means, teacher_means = student.means.view_as(rows), teacher.means.view_as(gathered)
    loss = (totals.flatten() * student.logsumexps.flatten()).sum()
    loss = loss - (teacher_means * gathered).sum() / temperature
    grad_rows = (totals * student_means - weights @ teacher_means) / temperature
    return loss, grad_rows, grad_prototypes

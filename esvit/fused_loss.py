"""The numbers of `loss.py` without ever storing logits, with its own backward.

Both tasks are one sum, over student rows i of weight n_i, of the cross-entropy of their target r_i
(the mean of the distributions p_t that i is compared with) and their own distribution q_i, the
softmax of s_i = W x_i / tau. Since r_i sums to one, that is logsumexp(s_i) - r_i . s_i, and the
gradient of its logits is q_i - r_i, which `sweeps.py` makes and multiplies without ever holding all
of it. With d_i = W^T (q_i - r_i):

    loss   = sum_i n_i (H(q_i) + d_i . x_i / tau),     H(q_i) = logsumexp(s_i) - q_i . s_i
    dx_i   = n_i d_i / tau
    dW     = sum_i (q_i - r_i) n_i x_i^T / tau

So the student's rows need three products with the prototypes and the teacher's one, as few as
autograd needs with all logits at hand, and the gradient is ready when the loss is: nothing else is
kept for the backward pass.

Shapes: V views, B images, L regions of a view, S and T student and teacher regions of an image (the
sums of L over the views), D columns of the bottleneck, K prototypes.
"""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from esvit.backbones.linear import dtype_of
from esvit.head import Prototypes
from esvit.loss import Loss, match_regions, region_head, split_views, view_pairs
from esvit.model import Projections
from esvit.sweeps import Comparisons, Rows, Sweep, Targets
from esvit.weight_norm import through_weight_norm_


def fused_cross_entropy(student: Rows, targets: Targets) -> Tensor:
    """Weighted sum of cross-entropies between student and teacher rows.

    Args:
        student: Rows over their temperature.
        targets: The teacher's side; nothing here gets a gradient.

    Returns:
        Float32 scalar, differentiable once in the student's queries and prototypes.
    """
    # torch leaves `apply` untyped.
    loss: Tensor = _FusedCrossEntropy.apply(student.queries, *student.prototypes, targets)  # type: ignore[no-untyped-call]
    return loss


def compare_views(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Comparisons:
    """Match every student view's regions with every other teacher view's.

    Args:
        student: (B, L, C) region features of each student view.
        teacher: (B, L, C) region features of each teacher view, the first of the student's.

    Returns:
        The comparisons of the mean over pairs of views, in a pair over images, in an image over
        regions.
    """
    pairs = view_pairs(len(student), len(teacher))
    starts = [0, *accumulate(view.shape[1] for view in teacher)]
    device = student[0].device
    matches, shares, counts, weights = [], [], [], []
    for s, view in enumerate(student):
        B, L, _ = view.shape
        others = [t for t, other in pairs if other == s]
        if others:
            found = [match_regions(view, teacher[t]) + starts[t] for t in others]  # of (B, L)
            matches.append(torch.stack(found, dim=-1).flatten(1))
            shares.append(torch.full((L * len(others),), 1 / len(others), device=device))
        counts.append(torch.full((L,), len(others), device=device))
        weights.append(torch.full((L,), len(others) / (len(pairs) * B * L), device=device))
    of_row = torch.cat(counts)  # (S,)
    return Comparisons(
        matches=torch.cat(matches, dim=1),
        starts=of_row.cumsum(dim=0) - of_row,
        shares=torch.cat(shares),
        weights=torch.cat(weights),
    )


class FusedLoss(Loss):
    """`Loss` in a fraction of its memory and time; the same arguments, state and numbers."""

    def view_task(
        self, student: Projections, teacher: Projections, teacher_temperature: float
    ) -> Tensor:
        """Mean cross-entropy over all pairs of views: a view is its own only region."""
        sizes, teacher_sizes = (len(x.regions_per_view) * (1,) for x in (student, teacher))
        views, teacher_views = by_image(student.view, sizes), by_image(teacher.view, teacher_sizes)
        targets = Targets(
            Rows(teacher_views / teacher_temperature, teacher.view_prototypes),
            self.center.flatten() / -teacher_temperature,
            compare_views(torch.split(views, 1, dim=1), torch.split(teacher_views, 1, dim=1)),
        )
        return fused_cross_entropy(
            Rows(views / self.student_temperature, student.view_prototypes), targets
        )

    def region_task(
        self, student: Projections, teacher: Projections, teacher_temperature: float
    ) -> Tensor:
        """Mean cross-entropy over all pairs of views of their matched regions."""
        sizes, teacher_sizes = student.regions_per_view, teacher.regions_per_view
        rows, prototypes = region_head(student)
        teacher_rows, teacher_prototypes = region_head(teacher)
        targets = Targets(
            Rows(by_image(teacher_rows, teacher_sizes) / teacher_temperature, teacher_prototypes),
            self.center_grid.flatten() / -teacher_temperature,
            compare_views(
                split_views(student.region_features, sizes),
                split_views(teacher.region_features, teacher_sizes),
            ),
        )
        return fused_cross_entropy(
            Rows(by_image(rows, sizes) / self.student_temperature, prototypes), targets
        )


def by_image(rows: Tensor, regions_per_view: Sequence[int]) -> Tensor:
    """Put rows (R, columns), which lie view by view, image by image: (B, S, columns)."""
    return torch.cat(split_views(rows, regions_per_view), dim=1)


class _FusedCrossEntropy(torch.autograd.Function):
    """Loss and gradient in one go; backward only takes the latter through the weight norm."""

    @staticmethod
    def forward(
        ctx: Any,  # torch gives contexts no public type
        queries: Tensor,
        directions: Tensor,
        lengths: Tensor,
        targets: Targets,
    ) -> Tensor:
        """Make the loss and its gradients in the queries and the effective prototypes."""
        student, dtype = Rows(queries, Prototypes(directions, lengths)), dtype_of(queries)
        with torch.autocast(queries.device.type, enabled=False):
            found = Sweep(student, targets, dtype).run()
        weights = targets.comparisons.weights  # (S,)
        moved = (found.differences * queries.float()).sum(dim=-1)  # (B, S)
        ctx.save_for_backward(directions, lengths)
        ctx.gradients = (
            (found.differences * weights.unsqueeze(1)).to(queries.dtype),
            found.gradient,
        )
        return ((found.entropies + moved) * weights).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor | None, ...]:  # as above
        """Scale the gradients by the loss's own; in place, they are used once."""
        if ctx.gradients is None:
            raise RuntimeError("the fused loss keeps its gradients for one backward pass only")
        (grad_queries, grad_weight), ctx.gradients = ctx.gradients, None
        prototypes = Prototypes(*ctx.saved_tensors)
        grad_directions, grad_lengths = through_weight_norm_(grad_weight, prototypes, grad_loss)
        return grad_queries.mul_(grad_loss), grad_directions, grad_lengths, None

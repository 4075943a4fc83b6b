"""The two tasks of EsViT, written to be read: what each equation says, tensor by tensor.

`fused_loss.py` gives the same numbers without ever storing logits; this file is what it is checked
against. Both start from `Projections`, where the bottlenecks of the heads end, and make the logits
themselves. Of the backbone nothing is known but its region features.

Shapes: V views, B images, L regions of a view (S of a student's, T of a teacher's), R rows (the sum
of B * L over the views), C channels of the backbone's features, D of the bottleneck, K prototypes.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from esvit.centers import average_over_processes, mean_logits, sinkhorn_center
from esvit.correspondence import cosines, nearest
from esvit.head import Prototypes
from esvit.model import Projections

Centering = Literal["mean", "sinkhorn"]


class Losses(NamedTuple):
    """The weighted sum and its parts, each a float32 scalar; only `total` is for `backward`."""

    total: Tensor
    view: Tensor
    region: Tensor


class _Task(NamedTuple):
    """One of the two.

    Attributes:
        name: `view` or `region`.
        weight: Of its loss in the total.
        compare: Gives its loss.
    """

    name: str
    weight: float
    compare: Callable[[Projections, Projections, float], Tensor]


def view_pairs(num_student: int, num_teacher: int) -> list[tuple[int, int]]:
    """List the pairs (teacher view, student view) that are compared: all but a view with itself."""
    pairs = [(t, s) for t in range(num_teacher) for s in range(num_student) if t != s]
    if not pairs:
        raise ValueError(f"{num_student} student and {num_teacher} teacher views make no pair")
    return pairs


def teacher_probs(logits: Tensor, center: Tensor, temperature: float) -> Tensor:
    """Center and sharpen the teacher's logits into distributions, float32, without gradient.

    Args:
        logits: (..., K) of the teacher.
        center: (1, K), subtracted from the logits.
        temperature: The teacher's, over 0.
    """
    return ((logits.detach() - center) / temperature).softmax(dim=-1, dtype=torch.float32)


def student_log_probs(logits: Tensor, temperature: float) -> Tensor:
    """Log of the student's distributions over prototypes, float32, (..., K) like the logits."""
    return F.log_softmax(logits / temperature, dim=-1, dtype=torch.float32)


def view_loss(log_probs: Tensor, probs: Tensor) -> Tensor:
    """Cross-entropy of one student view to one teacher view (EsViT, view-level task).

    Args:
        log_probs: (B, K) of the student.
        probs: (B, K) of the teacher.

    Returns:
        Scalar, the mean over images.
    """
    return -(probs * log_probs).sum(dim=-1).mean()


def mixed_view_loss(log_probs: Tensor, probs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of one student view whose images were mixed (mixup, CutMix), as published.

    Args:
        log_probs: (B, K) of the student.
        probs: (B, K) of the teacher, whose images are not mixed.
        targets: (B, B), for each teacher image (row) the weight of each student image (column).

    Returns:
        Scalar, the mean over the teacher's images.
    """
    cross_entropies = -(probs @ log_probs.T)
    return (targets * cross_entropies).sum(dim=-1).mean()


@torch.no_grad()
def match_regions(student: Tensor, teacher: Tensor) -> Tensor:
    """Find, for every student region, the most similar teacher region.

    Similarity is the cosine of the backbone's features, before any head, in float32
    (EsViT, region-level task). No gradient flows through the choice.

    Args:
        student: (B, S, C) region features of one view.
        teacher: (B, T, C) region features of another view.

    Returns:
        (B, S) int64, indices into the T teacher regions.
    """
    return nearest(cosines(student, teacher))


def region_loss(log_probs: Tensor, probs: Tensor, match: Tensor) -> Tensor:
    """Cross-entropy of one student view's regions to their matches (EsViT, region-level task).

    Args:
        log_probs: (B, S, K) of the student.
        probs: (B, T, K) of the teacher.
        match: (B, S), for each student region the index of its teacher region.

    Returns:
        Scalar, the mean over the regions of an image and over images.
    """
    images = torch.arange(len(match), device=match.device).unsqueeze(1)  # (B, 1)
    return -(probs[images, match] * log_probs).sum(dim=-1).mean()


class Loss(nn.Module):
    """Both tasks over all pairs of views, and the two centers they read.

    The mean is over pairs; inside a pair over images, and over the regions of an image: a small
    view's 9 regions weigh as much as a large view's 49. Views may be of any number and any sizes.
    """

    center: Tensor
    center_grid: Tensor

    def __init__(
        self,
        num_prototypes: int,
        *,
        view_weight: float = 0.5,
        region_weight: float = 0.5,
        student_temperature: float = 0.1,
        center_momentum: float = 0.9,
        centering: Centering = "mean",
    ) -> None:
        """Set the weights and start both centers at zero.

        Args:
            num_prototypes: K.
            view_weight: Of the view task. The published code halves both, the paper's
                L = L_V + L_R has 1 and 1; the view task alone has 1 and 0.
            region_weight: Of the region task; 0 leaves it out.
            student_temperature: Divides the student's logits.
            center_momentum: Share of the old center that an update of the mean keeps.
            centering: What the centers are: the running mean, or solved for each batch.
        """
        super().__init__()
        if min(view_weight, region_weight) < 0 or view_weight + region_weight == 0:
            raise ValueError(
                f"loss weights are {view_weight}, {region_weight}, expected a positive one"
            )
        self.view_weight = view_weight
        self.region_weight = region_weight
        self.student_temperature = student_temperature
        self.center_momentum = center_momentum
        self.centering = centering
        # The names are those of the published checkpoints.
        self.register_buffer("center", torch.zeros(1, num_prototypes))
        self.register_buffer("center_grid", torch.zeros(1, num_prototypes))

    def forward(
        self, student: Projections, teacher: Projections, teacher_temperature: float
    ) -> Losses:
        """Compare the student's views with the teacher's.

        It reads the centers, and changes nothing but those that are solved for each batch.

        Args:
            student: Of all views; the teacher's views come first, in the same order.
            teacher: Of the global views.
            teacher_temperature: Divides the teacher's centered logits.
        """
        self._solve_centers(teacher, teacher_temperature)
        return self._sum(
            {task.name: task.compare(student, teacher, teacher_temperature) for task in self._tasks}
        )

    def backward(
        self,
        student: Projections,
        teacher: Projections,
        teacher_temperature: float,
        share: float = 1.0,
    ) -> Losses:
        """Do `forward`, and the backward pass of a share of its total, one task after the other.

        What a task works with is gone before the next begins, and so is its prototypes' gradient if
        a hook lets it go; the network behind the student's outputs is gone back through once, at
        the end. If an output is not finite, no gradient is.

        Args:
            student: As `forward` takes it; the tasks share no prototypes.
            teacher: As `forward` takes it.
            teacher_temperature: As `forward` takes it.
            share: Multiplies all gradients.

        Returns:
            What `forward` does, without a graph.
        """
        outputs = student.view, student.regions
        rows = [x for x in (*outputs, teacher.view, teacher.regions) if x is not None]
        is_finite = torch.stack([x.isfinite().all() for x in rows]).all()
        factor = torch.where(is_finite, share, torch.nan)
        view = student.view.detach().requires_grad_()
        regions = None if student.regions is None else student.regions.detach().requires_grad_()
        student = student._replace(view=view, regions=regions)
        self._solve_centers(teacher, teacher_temperature)
        of_task = {}
        for task in self._tasks:
            loss = task.compare(student, teacher, teacher_temperature)
            _go_back([loss], [task.weight * factor])
            of_task[task.name] = loss.detach()
        reached = [
            (x, end.grad)
            for x, end in zip(outputs, (view, regions), strict=True)
            if x is not None and end is not None and end.grad is not None
        ]
        _go_back([x for x, _ in reached], [gradient for _, gradient in reached])
        return self._sum(of_task)

    def view_task(
        self, student: Projections, teacher: Projections, teacher_temperature: float
    ) -> Tensor:
        """Mean of `view_loss` over all pairs."""
        num_student, num_teacher = len(student.regions_per_view), len(teacher.regions_per_view)
        student_logits = F.linear(student.view, student.view_prototypes.weight).chunk(num_student)
        teacher_logits = F.linear(teacher.view, teacher.view_prototypes.weight).chunk(num_teacher)
        log_probs = [student_log_probs(view, self.student_temperature) for view in student_logits]
        probs = [teacher_probs(view, self.center, teacher_temperature) for view in teacher_logits]
        pairs = view_pairs(num_student, num_teacher)
        return torch.stack([view_loss(log_probs[s], probs[t]) for t, s in pairs]).mean()

    def region_task(
        self, student: Projections, teacher: Projections, teacher_temperature: float
    ) -> Tensor:
        """Mean of `region_loss` over all pairs."""
        student_logits = split_views(region_logits(student), student.regions_per_view)
        teacher_logits = split_views(region_logits(teacher), teacher.regions_per_view)
        student_features = split_views(student.region_features, student.regions_per_view)
        teacher_features = split_views(teacher.region_features, teacher.regions_per_view)
        log_probs = [student_log_probs(view, self.student_temperature) for view in student_logits]
        probs = [
            teacher_probs(view, self.center_grid, teacher_temperature) for view in teacher_logits
        ]
        losses = [
            region_loss(
                log_probs[s], probs[t], match_regions(student_features[s], teacher_features[t])
            )
            for t, s in view_pairs(len(log_probs), len(probs))
        ]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def update_centers(self, *teachers: Projections) -> None:
        """Move both centers towards the mean of the teacher's logits, over all processes.

        Centers that are solved for each batch stay.

        Args:
            teachers: One for each equal part of the batch; several if gradients are accumulated.
        """
        if self.centering == "sinkhorn":
            return
        weight = 1 - self.center_momentum
        if self.view_weight > 0:
            means = [mean_logits(part.view, part.view_prototypes) for part in teachers]
            self.center.lerp_(average_over_processes(torch.stack(means).mean(dim=0)), weight)
        if self.region_weight > 0:
            means = [mean_logits(*region_head(part)) for part in teachers]
            self.center_grid.lerp_(average_over_processes(torch.stack(means).mean(dim=0)), weight)

    @property
    def _tasks(self) -> list["_Task"]:
        """Those that count; first the one that needs the most memory."""
        tasks = [
            _Task("region", self.region_weight, self.region_task),
            _Task("view", self.view_weight, self.view_task),
        ]
        return [task for task in tasks if task.weight > 0]

    def _sum(self, of_task: Mapping[str, Tensor]) -> Losses:
        """Weigh what each task gave."""
        zero = self.center.new_zeros(())
        view, region = of_task.get("view", zero), of_task.get("region", zero)
        total = self.view_weight * view + self.region_weight * region
        return Losses(total, view.detach(), region.detach())

    def _solve_centers(self, teacher: Projections, temperature: float) -> None:
        """Set both centers to those of a batch, if they are solved for."""
        if self.centering != "sinkhorn":
            return
        if self.view_weight > 0:
            solved = sinkhorn_center(teacher.view, teacher.view_prototypes, temperature)
            self.center.copy_(solved)
        if self.region_weight > 0:
            self.center_grid.copy_(sinkhorn_center(*region_head(teacher), temperature))


def region_logits(output: Projections) -> Tensor:
    """Give a network's region logits (R, K); takes and raises what `region_head` does."""
    rows, prototypes = region_head(output)
    return F.linear(rows, prototypes.weight)


def region_head(output: Projections) -> tuple[Tensor, Prototypes]:
    """Give a network's region bottleneck (R, D) and prototypes.

    Raises:
        ValueError: if it has no region head.
    """
    if output.regions is None or output.region_prototypes is None:
        raise ValueError("the region task needs a region head in student and teacher")
    return output.regions, output.region_prototypes


def split_views(rows: Tensor, regions_per_view: Sequence[int]) -> list[Tensor]:
    """Cut rows (R, columns), which lie view by view, into one (B, L, columns) a view."""
    B = len(rows) // sum(regions_per_view)
    views = torch.split(rows, [B * L for L in regions_per_view])
    return [view.view(B, L, -1) for view, L in zip(views, regions_per_view, strict=True)]


def _go_back(tensors: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
    """Do a backward pass, which is no place for autocast."""
    with torch.autocast(tensors[0].device.type, enabled=False):
        torch.autograd.backward(tensors, gradients)

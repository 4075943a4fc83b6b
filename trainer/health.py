"""Whether a run learns: how the teacher's answers spread, and words of warning when they collapse.

Self-distillation has two ways to cheat: the teacher answers everything alike, evenly over all
prototypes or with a single one. Both show in its entropy, in the divergence between the networks,
and in features that no longer tell images apart, long before an evaluation shows them.

Shapes: B images, N rows (views of images), C features, K prototypes.
"""

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from esvit.loss import split_views, student_log_probs, teacher_probs, view_pairs
from esvit.model import Projections, evaluating
from trainer.step import TrainState

MAX_IMAGES = 32
"""So many images of a batch are looked at."""

MAX_REMEMBERED = 4096
"""Of so many latest answers the prototypes are counted."""

PATIENCE = 3
"""A warning comes when so many readings in a row agree."""


class Health(NamedTuple):
    """One reading.

    Attributes:
        teacher_entropy: Mean entropy of the teacher's distributions over ln K, 0 to 1.
        kl: Mean divergence from the teacher's to the student's distribution of another view.
        feature_std: Mean spread of the images' normalised features, 1 if they point anywhere, 0 if
            all are the same.
        used_prototypes: How many prototypes were the first choice of the latest answers.
        answers: How many answers these were.
    """

    teacher_entropy: float
    kl: float
    feature_std: float
    used_prototypes: int
    answers: int


@dataclass
class HealthCheck:
    """Takes readings and remembers what it needs to warn once.

    Attributes:
        num_global_views: How many of the views the teacher sees.
    """

    num_global_views: int
    _choices: deque[int] = field(default_factory=lambda: deque(maxlen=MAX_REMEMBERED))
    _suspected: str | None = None
    _count: int = 0

    @torch.no_grad()
    def read(self, state: TrainState, views: Sequence[Tensor], temperature: float) -> Health:
        """Look at the first images of a batch; changes neither networks nor random states.

        Args:
            state: Of the run.
            views: V views (B, 3, S, S).
            temperature: The teacher's.
        """
        few = [view[:MAX_IMAGES] for view in views[: max(2, self.num_global_views)]]
        with evaluating(state.student, state.teacher):
            teacher = state.teacher(few[: self.num_global_views])
            student = state.student(few)
        logits = F.linear(teacher.view, teacher.view_prototypes.weight)
        probs = teacher_probs(logits, state.loss.center, temperature)
        entropies = torch.special.entr(probs).sum(dim=-1)  # (N,)
        self._choices.extend((logits - state.loss.center).argmax(dim=-1).tolist())
        return Health(
            teacher_entropy=float(entropies.mean()) / math.log(logits.shape[-1]),
            kl=_divergence(student, probs, entropies, state.loss.student_temperature),
            feature_std=_spread(teacher),
            used_prototypes=len(set(self._choices)),
            answers=len(self._choices),
        )

    def warning(self, health: Health) -> str | None:
        """Say in words what has gone wrong, once, when enough readings in a row agree."""
        found = diagnose(health)
        self._count = self._count + 1 if found == self._suspected else 1
        self._suspected = found
        return found if self._count == PATIENCE else None


def diagnose(health: Health) -> str | None:
    """Name the collapse that a reading looks like; None if it looks like none."""
    if health.teacher_entropy > 0.98 and health.kl < 0.01:
        return (
            f"collapse to the uniform answer: the teacher's entropy is {health.teacher_entropy:.1%}"
            " of its maximum for every image; lower its temperature or the learning rate"
        )
    if health.answers >= 8 * MAX_IMAGES and health.used_prototypes <= 2:
        return (
            f"collapse to one answer: {health.used_prototypes} prototypes take all of "
            f"{health.answers} images; raise the teacher's temperature or lower center_momentum"
        )
    if health.feature_std < 0.02:
        return (
            "features of different images are nearly the same (spread "
            f"{health.feature_std:.3f} of 1): lower the learning rate or warm up longer"
        )
    return None


def _divergence(
    student: Projections, probs: Tensor, entropies: Tensor, temperature: float
) -> float:
    """Cross-entropy less entropy, over all pairs of different views."""
    num_student, num_teacher = len(student.regions_per_view), len(entropies)
    B = len(student.view) // num_student
    log_probs = student_log_probs(
        F.linear(student.view, student.view_prototypes.weight), temperature
    )
    of_student, of_teacher = torch.split(log_probs, B), torch.split(probs, B)
    pairs = view_pairs(num_student, num_teacher // B)
    crosses = [-(of_teacher[t] * of_student[s]).sum(dim=-1).mean() for t, s in pairs]
    return float(torch.stack(crosses).mean() - entropies.mean())


def _spread(teacher: Projections) -> float:
    """Standard deviation over images of normalised mean features, times the root of C."""
    first = split_views(teacher.region_features, teacher.regions_per_view)[0]  # (B, L, C)
    features = F.normalize(first.float().mean(dim=1), dim=-1)
    return float(features.std(dim=0, unbiased=False).mean()) * math.sqrt(features.shape[-1])

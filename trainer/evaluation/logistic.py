"""Logistic regression by L-BFGS, and the search for the strength of its L2 penalty.

The features stay as they are, in parts: what standardises them is folded into the weights, and sums
run over the parts, one after the other on the device of the weights, so nothing of the size of the
features is made.

Shapes: N samples, D features, K classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

MAX_ITERATIONS = 1000
"""As in CLIP's linear probe (Radford et al. 2021, appendix A.3)."""

STRENGTHS = tuple(10.0 ** (-6 + step / 8) for step in range(97))
"""Eight a decade from 1e-6 to 1e6."""

CPU = torch.device("cpu")

_FIRST_STEP = 16
_HISTORY = 10


class Samples(NamedTuple):
    """Features in parts, and what they are of.

    Attributes:
        parts: (n, D) float32 each, N rows together.
        targets: (N,) int64 classes, or (N, K) bool where a sample has any number of them.
    """

    parts: Sequence[Tensor]
    targets: Tensor

    def __len__(self) -> int:
        return len(self.targets)


class Scale(NamedTuple):
    """Mean and standard deviation of the features, (D,) float64 each."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Linear:
    """Weights (K, D) and biases (K,) float64 on standardised features."""

    weight: Tensor
    bias: Tensor
    scale: Scale

    def scores(self, parts: Sequence[Tensor]) -> Tensor:
        """Give (N, K) float32 logits of features as they are, on the CPU."""
        weight, bias = _folded(self)
        there = (part.to(weight.device) for part in parts)
        return torch.cat([torch.addmm(bias, part, weight.T).cpu() for part in there])


def scale_of(parts: Sequence[Tensor]) -> Scale:
    """Measure features; one that never changes keeps its scale."""
    count = sum(len(part) for part in parts)
    mean = sum((part.double().sum(0) for part in parts), torch.zeros(())) / count
    square = sum(((part.double() - mean) ** 2).sum(0) for part in parts) / count
    std = torch.as_tensor(square).sqrt()
    return Scale(mean, std.where(std > 1e-6 * mean.abs().clamp(min=1e-6), 1.0))


def zero(scale: Scale, num_classes: int, device: torch.device = CPU) -> Linear:
    """Give the weights to begin with, on the device where they will be fitted."""
    weight = torch.zeros(num_classes, len(scale.mean), dtype=torch.float64, device=device)
    return Linear(weight, weight[:, 0].clone(), Scale(*(x.to(device) for x in scale)))


def fit(samples: Samples, start: Linear, strength: float) -> Linear:
    """Minimise the sum of the samples' cross-entropies plus strength / 2 times |weight|^2.

    Classes exclude each other, or each is a yes or no of its own, as the targets have it. The
    problem is convex: where it starts decides only on how long it takes.
    """
    weight = start.weight.clone().requires_grad_()
    bias = start.bias.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias],
        max_iter=MAX_ITERATIONS,
        tolerance_grad=1e-6,
        tolerance_change=1e-9,
        history_size=_HISTORY,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        at = Linear(weight.detach(), bias.detach(), start.scale)
        loss, of_weight, of_bias = _loss_and_gradient(samples, at)
        penalty = strength / len(samples)
        weight.grad = of_weight + penalty * at.weight
        bias.grad = of_bias
        return loss + penalty / 2 * at.weight.square().sum()

    optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch has no hints here
    return Linear(weight.detach(), bias.detach(), start.scale)


def search(score: Callable[[float], float]) -> dict[float, float]:
    """Look for the strength with the best score, as CLIP's linear probe does.

    Seven strengths two decades apart come first; then the two at half the distance from the best
    are asked, a quarter, and so on, down to eight a decade.

    Args:
        score: Of a strength, the higher the better.

    Returns:
        Score of each strength that was asked, in the order of asking.
    """
    asked: dict[int, float] = {}
    for place in reversed(range(0, len(STRENGTHS), _FIRST_STEP)):
        asked[place] = score(STRENGTHS[place])
    step = _FIRST_STEP // 2
    while step:
        best = _best(asked)
        for place in (best - step, best + step):
            if 0 <= place < len(STRENGTHS) and place not in asked:
                asked[place] = score(STRENGTHS[place])
        step //= 2
    return {STRENGTHS[place]: found for place, found in asked.items()}


def best_strength(asked: dict[float, float]) -> float:
    """Give the strength with the best score, the strongest of equals."""
    return max(asked, key=lambda strength: (asked[strength], strength))


def _best(asked: dict[int, float]) -> int:
    """Give the place with the best score, the strongest of equals."""
    return max(asked, key=lambda place: (asked[place], place))


def _folded(linear: Linear) -> tuple[Tensor, Tensor]:
    """Give float32 weights and biases for features that are not standardised."""
    weight = linear.weight / linear.scale.std
    return weight.float(), (linear.bias - weight @ linear.scale.mean).float()


def _loss_and_gradient(samples: Samples, at: Linear) -> tuple[Tensor, Tensor, Tensor]:
    """Give the mean cross-entropy and its gradient by weights (K, D) and biases (K,), float64."""
    weight, bias = _folded(at)
    loss, by_logits_sum = at.bias.new_zeros(()), torch.zeros_like(at.bias)
    by_folded = torch.zeros_like(at.weight)
    sizes = [len(part) for part in samples.parts]
    for part, targets in zip(samples.parts, torch.split(samples.targets, sizes), strict=True):
        part = part.to(weight.device)
        logits = torch.addmm(bias, part, weight.T)
        some, by_logits = _cross_entropy(logits, targets.to(weight.device))
        loss += some
        by_logits_sum += by_logits.sum(0)
        by_folded += by_logits.T @ part
    by_weight = (by_folded - by_logits_sum[:, None] * at.scale.mean) / at.scale.std
    N = len(samples)
    return loss / N, by_weight / N, by_logits_sum / N


def _cross_entropy(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Give the sum of cross-entropies, float64, and its gradient by logits (n, K)."""
    if targets.dim() == 2:
        loss = F.binary_cross_entropy_with_logits(logits, targets.float(), reduction="none")
        return loss.double().sum(), logits.sigmoid() - targets.float()
    loss = F.cross_entropy(logits, targets, reduction="none")
    return loss.double().sum(), logits.softmax(1) - F.one_hot(targets, logits.shape[1])

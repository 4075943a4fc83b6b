"""The published linear probe: SGD on frozen features, several learning rates side by side.

Shapes: N samples, D features, K classes.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from trainer.evaluation.features import Rows

INIT_STD = 0.01
MOMENTUM = 0.9


class Probe(NamedTuple):
    """One learning rate's classifier after an epoch, from 1."""

    base_lr: float
    epoch: int
    layer: nn.Linear


class Plan(NamedTuple):
    """How the classifiers are trained.

    Attributes:
        base_lrs: Learning rates of a batch of 256; each has a classifier of its own.
        epochs: Passes over the rows.
        batch: Rows of an update.
        seed: Of weights and order.
        device: Where they are trained.
    """

    base_lrs: tuple[float, ...]
    epochs: int
    batch: int
    seed: int
    device: torch.device = torch.device("cpu")


def train_probes(
    rows: Rows, targets: Tensor, num_classes: int, plan: Plan, advance: Callable[[int], None]
) -> Iterator[list[Probe]]:
    """Train a classifier for each learning rate on the same batches; give all after each epoch.

    Their losses are added up: no classifier's gradient depends on another's.

    Weights start at N(0, 0.01), biases at 0; momentum 0.9, no decay; the rate is its base times
    batch / 256, and falls by a cosine from epoch to epoch to 0.

    Args:
        rows: N rows.
        targets: (N,) int64 classes, or (N, K) bool where a sample has any number of them.
        num_classes: K.
        plan: How.
        advance: Told of every update.
    """
    generator = torch.Generator().manual_seed(plan.seed)
    dim = rows.parts[0].shape[1]
    layers = [_layer(dim, num_classes, generator).to(plan.device) for _ in plan.base_lrs]
    groups = [
        {"params": layer.parameters(), "lr": base_lr * plan.batch / 256}
        for layer, base_lr in zip(layers, plan.base_lrs, strict=True)
    ]
    optimizer = torch.optim.SGD(groups, momentum=MOMENTUM)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, plan.epochs)
    criterion = F.cross_entropy if targets.dim() == 1 else F.binary_cross_entropy_with_logits
    wanted = targets if targets.dim() == 1 else targets.float()
    for epoch in range(1, plan.epochs + 1):
        for positions in torch.split(torch.randperm(len(rows), generator=generator), plan.batch):
            some, of_some = (x.to(plan.device) for x in (rows.take(positions), wanted[positions]))
            losses = [criterion(layer(some), of_some) for layer in layers]
            optimizer.zero_grad()
            torch.stack(losses).sum().backward()  # type: ignore[no-untyped-call]  # torch has no hints here
            optimizer.step()
            advance(1)
        schedule.step()
        yield [Probe(lr, epoch, layer) for lr, layer in zip(plan.base_lrs, layers, strict=True)]


def _layer(dim: int, num_classes: int, generator: torch.Generator) -> nn.Linear:
    """Draw a fresh classifier."""
    layer = nn.Linear(dim, num_classes)
    nn.init.normal_(layer.weight, std=INIT_STD, generator=generator)
    nn.init.zeros_(layer.bias)
    return layer

"""What is subtracted from the teacher's logits, so that it cannot answer everything alike.

Published is the running mean of the logits (Caron et al. 2021, section 3.1). It says where the
logits lie, not how often a prototype wins; while features still tell little apart, few prototypes
win nearly always, and thousands of updates pass until the rest come into use. The center of
Sinkhorn and Knopp (Cuturi 2013; Caron et al. 2020, section 3.1; Oquab et al. 2023, section 4) is
solved for on each batch, such that every prototype gets the same share of it.

Shapes: R rows of the teacher, D columns of the bottleneck, K prototypes.
"""

import torch
import torch.distributed
import torch.nn.functional as F
from torch import Tensor

from esvit.head import Prototypes
from esvit.weight_norm import compare

_ITERATIONS = 3
"""As in both papers."""
_LOGITS_AT_ONCE = 2**22
_SMALLEST_SHARE = 1e-30


@torch.no_grad()
def mean_logits(bottleneck: Tensor, prototypes: Prototypes) -> Tensor:
    """Mean of all logits of a batch, (1, K) float32, without making them.

    The last layer is linear: the mean of the logits is the logits of the mean.

    Args:
        bottleneck: (R, D).
        prototypes: K of them.
    """
    with torch.autocast(bottleneck.device.type, enabled=False):
        mean = bottleneck.float().mean(dim=0, keepdim=True)
        return compare(mean, prototypes)


@torch.no_grad()
def sinkhorn_center(bottleneck: Tensor, prototypes: Prototypes, temperature: float) -> Tensor:
    """Center with which every prototype gets nearly the same share of a batch, (1, K) float32.

    Sinkhorn and Knopp's iteration scales rows and columns of exp(logits / temperature) in turn.
    The softmax that follows scales the rows, whatever the center is; the columns' factors are a
    center. So an iteration is: see which share of all rows a prototype gets with the center so far,
    and raise its center by temperature times the log of that share's excess. Rows are those of all
    processes, a few at a time.

    Args:
        bottleneck: (R, D).
        prototypes: K of them.
        temperature: By which the centered logits are going to be divided.
    """
    with torch.autocast(bottleneck.device.type, enabled=False):
        weight = prototypes.weight.float() / temperature
        center = weight.new_zeros(1, len(weight))
        parts = torch.split(bottleneck.float(), max(1, _LOGITS_AT_ONCE // len(weight)))
        for _ in range(_ITERATIONS):
            shares = torch.zeros_like(center)
            for part in parts:
                shares += (F.linear(part, weight) - center).softmax(dim=-1).sum(0, keepdim=True)
            shares = average_over_processes(shares / len(bottleneck))
            center += (shares.clamp_min(_SMALLEST_SHARE) * len(weight)).log()
        return temperature * center


def average_over_processes(values: Tensor) -> Tensor:
    """Average over all processes of a run that has several; the same values back if alone."""
    if not torch.distributed.is_available() or not torch.distributed.is_initialized():
        return values
    total = values.clone()
    torch.distributed.all_reduce(total)
    return total / torch.distributed.get_world_size()

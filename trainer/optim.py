"""AdamW over two groups, clipping and freezing, as published; each deviation is an option.

Nothing here waits for the device: norms and scales stay tensors.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

LAST_LAYER = "last_layer"
"""Part of the name of every parameter of a prototype layer."""


def param_groups(
    model: nn.Module, *, decay_tables: bool = True
) -> list[dict[str, list[nn.Parameter] | float]]:
    """Sort parameters that get gradients into those with and those without weight decay.

    As published, vectors and biases go without; everything of two or more axes is decayed.

    Args:
        model: The student.
        decay_tables: False leaves out also the relative position tables, position
            embeddings, class tokens and the prototypes' lengths `weight_g`. They have two axes by
            an accident of layout: decay pulls attention towards none of its positional
            preferences, and the prototypes towards a higher temperature, while nothing is
            regularised. Off means other numbers than the published runs.

    Returns:
        Two groups for an optimizer, the first with the key `weight_decay` left to the schedule,
        the second with a weight decay of 0.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = _decays(name, parameter, decay_tables)
            (decayed if decays else plain).append(parameter)
    return [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]


_TABLES = (
    "relative_position_bias_table",
    "relative_position_bias",
    "pos_embed",
    "cls_token",
    "weight_g",
)


def _decays(name: str, parameter: nn.Parameter, decay_tables: bool) -> bool:
    """Say whether a parameter is decayed."""
    if name.endswith(".bias") or parameter.ndim == 1:
        return False
    return decay_tables or not name.endswith(_TABLES)


def make_optimizer(model: nn.Module, *, decay_tables: bool = True) -> torch.optim.AdamW:
    """Make AdamW with torch's defaults for betas and epsilon; rate and decay come every step."""
    groups = param_groups(model, decay_tables=decay_tables)
    return torch.optim.AdamW(groups, lr=0.0, weight_decay=0.0, fused=True)


def set_schedule(optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float) -> None:
    """Set the learning rate of all groups and the weight decay of the first."""
    for group in optimizer.param_groups:
        group["lr"] = lr
    optimizer.param_groups[0]["weight_decay"] = weight_decay


@torch.no_grad()
def clip_each_gradient(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale every gradient alone to at most `max_norm`, as published; gives the norms before.

    Args:
        parameters: Those without a gradient are left out.
        max_norm: Of one tensor's gradient.

    Returns:
        (number of gradients,) float32 norms.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch._foreach_norm(gradients)
    scales = torch.clamp(max_norm / (torch.stack(norms) + 1e-6), max=1.0)
    torch._foreach_mul_(gradients, list(scales.unbind()))
    return torch.stack(norms)


@torch.no_grad()
def clip_all_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients by one factor to a common norm of at most `max_norm`.

    An option: one factor keeps the direction of the update, which clipping tensor by tensor turns
    towards those with small gradients. Takes and gives what `clip_each_gradient` does.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack(torch._foreach_norm(gradients))
    scale = torch.clamp(max_norm / (torch.linalg.vector_norm(norms) + 1e-6), max=1.0)
    torch._foreach_mul_(gradients, scale)
    return norms


def last_layers(model: nn.Module) -> list[nn.Parameter]:
    """List the parameters of the prototypes."""
    return [parameter for name, parameter in model.named_parameters() if LAST_LAYER in name]

"""What a checkpoint holds, as flat named tensors: modules and optimizer.

Everything is filed by name: `student/head.mlp.0.weight`, `optimizer/head.mlp.0.weight/exp_avg`. So
a checkpoint can start a run that has more parameters than it knows, as when the region task is
added to a view-only one. Random states are in none: what a step draws follows from its number.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def module_tensors(prefix: str, module: nn.Module) -> dict[str, Tensor]:
    """Name a module's parameters and buffers."""
    return {f"{prefix}/{name}": tensor for name, tensor in module.state_dict().items()}


def load_module(prefix: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Load what `module_tensors` named, all of it.

    Raises:
        ValueError: if a tensor is missing, unexpected or of another shape.
    """
    try:
        module.load_state_dict(below(prefix, tensors), strict=True)
    except RuntimeError as error:
        raise ValueError(f"checkpoint does not fit the {prefix}: {_first_of(error)}") from error


def load_known(prefix: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> list[str]:
    """Load what the checkpoint has of a module; give the names that keep their fresh values.

    Raises:
        ValueError: if the checkpoint has something that the module has not, or of another shape.
    """
    known = below(prefix, tensors)
    fresh = [name for name in module.state_dict() if name not in known]
    extra = known.keys() - module.state_dict().keys()
    if extra:
        raise ValueError(f"checkpoint has {sorted(extra)[:3]}, which the {prefix} has not")
    try:
        module.load_state_dict(known, strict=False)
    except RuntimeError as error:
        raise ValueError(f"checkpoint does not fit the {prefix}: {_first_of(error)}") from error
    return fresh


def _first_of(error: RuntimeError) -> str:
    """Give the first of torch's reasons, and how many more there are."""
    _, *reasons = str(error).splitlines()
    first = reasons[0].strip().rstrip(".") if reasons else str(error)
    return first if len(reasons) < 2 else f"{first}; and {len(reasons) - 1} more"


def optimizer_tensors(
    optimizer: Optimizer, named: Iterable[tuple[str, nn.Parameter]]
) -> dict[str, Tensor]:
    """Name the optimizer's state by parameter; learning rates and decays come from the schedule."""
    return {
        f"optimizer/{name}/{key}": torch.as_tensor(value)
        for name, parameter in named
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(
    optimizer: Optimizer,
    named: Iterable[tuple[str, nn.Parameter]],
    tensors: Mapping[str, Tensor],
) -> None:
    """Put back the state of every parameter the checkpoint knows.

    Raises:
        ValueError: if there is state of a parameter that is not there, or of another shape.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for path, tensor in below("optimizer", tensors).items():
        name, _, key = path.rpartition("/")
        states.setdefault(name, {})[key] = tensor
    trained = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    for name, parameter in named:
        if parameter in trained and name in states:
            optimizer.state[parameter] = {
                key: _place(f"{name}/{key}", value, parameter)
                for key, value in states.pop(name).items()
            }
    if states:
        raise ValueError(f"checkpoint has optimizer state of unknown {sorted(states)[:3]}")


def _place(name: str, value: Tensor, parameter: nn.Parameter) -> Tensor:
    """Bring a piece of state to the parameter's device, where a fused optimizer keeps all of it."""
    if value.ndim and value.shape != parameter.shape:
        shapes = f"{tuple(value.shape)}, expected {tuple(parameter.shape)}"
        raise ValueError(f"optimizer state {name} has shape {shapes}")
    return value.clone().to(parameter.device)


def below(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Give what is filed below a prefix, without the prefix."""
    return {
        name.removeprefix(f"{prefix}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}/")
    }

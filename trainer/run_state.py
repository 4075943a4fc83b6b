"""What a checkpoint holds, as flat named tensors: modules, optimizer, random states.

Everything is filed by name: `student/head.mlp.0.weight`, `optimizer/head.mlp.0.weight/exp_avg`,
`random/torch`. So a checkpoint can start a run that has more parameters than it knows, as when the
region task is added to a view-only one.
"""

import random
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
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
        raise ValueError(f"checkpoint does not fit the {prefix}: {error}") from error


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
        raise ValueError(f"checkpoint does not fit the {prefix}: {error}") from error
    return fresh


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
) -> list[str]:
    """Put back the state of every parameter the checkpoint knows; give the names of the others.

    Raises:
        ValueError: if there is state of a parameter that is not there, or of another shape.
    """
    states: dict[str, dict[str, Tensor]] = {}
    for path, tensor in below("optimizer", tensors).items():
        name, _, key = path.rpartition("/")
        states.setdefault(name, {})[key] = tensor
    on_device = {
        parameter: bool(group.get("capturable") or group.get("fused"))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    fresh = []
    for name, parameter in named:
        if parameter not in on_device:
            continue
        if name not in states:
            fresh.append(name)
            continue
        optimizer.state[parameter] = {
            key: _place(f"{name}/{key}", value, parameter, on_device=on_device[parameter])
            for key, value in states.pop(name).items()
        }
    if states:
        raise ValueError(f"checkpoint has optimizer state of unknown {sorted(states)[:3]}")
    return fresh


def _place(name: str, value: Tensor, parameter: nn.Parameter, *, on_device: bool) -> Tensor:
    """Bring a piece of optimizer state to where the optimizer keeps it."""
    if value.ndim == 0:  # AdamW's count of steps stays on the host, where it costs no waiting
        return value.clone().to(parameter.device) if on_device else value.clone()
    if value.shape != parameter.shape:
        shapes = f"{tuple(value.shape)}, expected {tuple(parameter.shape)}"
        raise ValueError(f"optimizer state {name} has shape {shapes}")
    return value.clone().to(parameter.device)


def random_tensors() -> dict[str, Tensor]:
    """Name the states of this process's global generators: Python, NumPy, torch, every CUDA."""
    version, words, spare = random.getstate()
    kind, keys, position, has_spare, spare_normal = np.random.get_state()
    if version != 3 or kind != "MT19937":
        raise ValueError(f"generators of unknown kinds: Python {version}, NumPy {kind}")
    states = {
        "random/python": torch.tensor(words),
        "random/python_spare": torch.tensor([] if spare is None else [spare], dtype=torch.float64),
        "random/numpy": torch.from_numpy(np.append(keys, position).astype(np.int64)),
        "random/numpy_spare": torch.tensor([has_spare, spare_normal], dtype=torch.float64),
        "random/torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states |= {f"random/cuda/{i}": s for i, s in enumerate(torch.cuda.get_rng_state_all())}
    return states


def load_random(tensors: Mapping[str, Tensor]) -> None:
    """Put the generators back to what `random_tensors` saw.

    CUDA generators are put back as far as this machine has them.
    """
    states = below("random", tensors)
    spare = states["python_spare"].tolist()
    random.setstate((3, tuple(states["python"].tolist()), spare[0] if spare else None))
    *keys, position = states["numpy"].tolist()
    has_spare, spare_normal = states["numpy_spare"].tolist()
    np.random.set_state(
        ("MT19937", np.array(keys, np.uint32), position, int(has_spare), spare_normal)
    )
    torch.set_rng_state(states["torch"])
    for i in range(torch.cuda.device_count()):
        if f"cuda/{i}" in states:
            torch.cuda.set_rng_state(states[f"cuda/{i}"], i)


def below(prefix: str, tensors: Mapping[str, Any]) -> dict[str, Tensor]:
    """Give what is filed below a prefix, without the prefix."""
    return {
        name.removeprefix(f"{prefix}/"): tensor
        for name, tensor in tensors.items()
        if name.startswith(f"{prefix}/")
    }

"""Tensors by name: what weights are, and looking one up that must be there."""

from collections.abc import Mapping

from torch import Tensor

State = Mapping[str, Tensor]


def tensor_of(state: State, key: str, axes: int) -> Tensor:
    """Look up a tensor.

    Raises:
        ValueError: if it is missing, or has another number of axes.
    """
    if key not in state:
        raise ValueError(f"no tensor {key}")
    if state[key].dim() != axes:
        raise ValueError(f"tensor {key} has shape {tuple(state[key].shape)}, expected {axes} axes")
    return state[key]


def count_numbered(state: State, prefix: str) -> int:
    """Count what is numbered from 0 behind a prefix, such as the blocks behind `blocks.`.

    Raises:
        ValueError: if a number is left out.
    """
    behind = (key.removeprefix(prefix) for key in state if key.startswith(prefix))
    numbers = {int(found) for key in behind if (found := key.partition(".")[0]).isdecimal()}
    if numbers != set(range(len(numbers))):
        raise ValueError(f"{prefix} is numbered {sorted(numbers)}, expected 0 to the last")
    return len(numbers)

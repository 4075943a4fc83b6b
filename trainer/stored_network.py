"""A network out of whatever holds one: a published checkpoint, weights of ours, a run's folder.

Of a run it is known at which size it learnt (`image_size`), which is then what it is asked at.
"""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from esvit.model import HEADS
from esvit.recognise import recognise_backbone
from esvit.weights import Network, Weights, read_weights
from trainer.checkpoint import Checkpoint, load_checkpoint, load_latest
from trainer.networks import CHECKPOINTS
from trainer.run_folder import CONFIG
from trainer.run_state import below

IMAGE_SIZE = 224
"""Side in pixels at which weights are asked that do not know theirs, as published."""

SIDES = range(32, 1025)
"""Sides of an image in pixels that a network is asked at; attention grows with the fourth power."""


def read_network(path: Path, network: Network) -> Weights:
    """Read a network, with `image_size` and more among what it is about if a run made it.

    Args:
        path: A published checkpoint, weights of ours, a run's folder or one of its checkpoints.
        network: Which of the two, where there are two.

    Raises:
        FileNotFoundError: if there is no such file, or no checkpoint in the folder.
        ValueError: if it is unreadable, of no backbone that is known, not finite, or does not hold
            that network.
    """
    if path.suffix == ".onnx":
        raise ValueError(f"{path} is a model file, expected a checkpoint")
    if path.is_dir():
        found = load_latest(path / CHECKPOINTS)
        if found is None:
            raise FileNotFoundError(f"{path} holds no checkpoint of a run")
        weights = _of_checkpoint(found, network)
    elif path.suffix == ".safetensors" and "state" in _metadata(path):
        weights = _of_checkpoint(load_checkpoint(path), network)
    else:
        weights = read_weights(path, network)
        held = weights.about.get("network", "teacher")  # a run's file of weights is its teacher's
        if network == "student" and held != network:
            raise ValueError(f"{path} holds the {held} alone, no {network}")
    for name, x in weights.state.items():
        if x.is_floating_point() and not bool(x.isfinite().all()):
            raise ValueError(f"{path}: tensor {name} is not finite; it learnt nothing of use")
    return weights


def image_size_of(weights: Weights) -> int:
    """Give the side in pixels that a network learnt at, else the published one."""
    size = weights.about.get("image_size", IMAGE_SIZE)
    if not isinstance(size, int) or size not in SIDES:
        raise ValueError(f"the weights are said to have learnt at {size!r} px, expected {_SIDES}")
    return size


def check_image_size(size: int | None) -> None:
    """Refuse a side that no network is asked at.

    Raises:
        ValueError: if it is one.
    """
    if size is not None and size not in SIDES:
        raise ValueError(f"image size is {size}, expected {_SIDES}")


_SIDES = f"{SIDES.start} to {SIDES.stop - 1}"


def _of_checkpoint(checkpoint: Checkpoint, network: Network) -> Weights:
    """Take a network's backbone out of what a run has saved."""
    tensors = below(network, checkpoint.tensors)
    state = {name: x for name, x in tensors.items() if not name.startswith(HEADS)}
    about: dict[str, Any] = {"step": checkpoint.step, "file": checkpoint.path.name}  # JSON values
    about |= _about_run(checkpoint.path.parent.parent)
    return Weights(state=state, backbone=recognise_backbone(state), about=about)


def _about_run(folder: Path) -> dict[str, Any]:  # JSON values
    """Read from a run's config what a reader of its weights should know; nothing without one."""
    path = folder / CONFIG
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text())
        about = {"image_size": int(config["crops"]["global_size"])}
        return about | {name: config[name] for name in ("recipe", "licence") if name in config}
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path} does not say how large the run's views are: {error!r}") from error


def _metadata(path: Path) -> dict[str, str]:
    """Read what a safetensors file says of itself; nothing if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):  # read_weights says what is wrong
        return {}

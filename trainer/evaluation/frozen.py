"""The network that is measured, frozen: a checkpoint in torch, or a model file as it is served.

Whichever it is, it takes what the service's preprocessing makes of an image and gives the outputs
of the model-file contract, so every protocol can be run on both.

Shapes: B images, S the side of the model's square, C and D features, L regions.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, Literal, cast

import onnxruntime
import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from torch import Tensor

from esvit.backbones import Backbone, Features
from esvit.config import backbone_name
from esvit.recognise import recognise_backbone
from esvit.weights import Network, Weights, digest, read_weights
from service.contract import INPUT, METADATA_KEY, ModelInfo, Output
from trainer.checkpoint import Checkpoint, load_checkpoint, load_latest
from trainer.config import ComputeConfig
from trainer.devices import choose_device
from trainer.evaluation.config import ImagesConfig, NetworkConfig
from trainer.evaluation.images import preprocessing
from trainer.evaluation.subject import Frozen, Subject
from trainer.networks import CHECKPOINTS
from trainer.onnx_graph import NUM_LAST_BLOCKS
from trainer.pixel_ops import normalize
from trainer.run_folder import CONFIG
from trainer.run_state import below

IMAGE_SIZE = 224
"""Side in pixels at which a checkpoint is measured that does not know one, as published."""

HEADS = ("head.", "head_dense.")
"""Beginnings of the names of tensors that are no part of a backbone."""

SIDES = range(32, 1025)
"""Sides of an image in pixels that a network is asked at, as in export."""


def open_subject(config: ImagesConfig, console: Console) -> Subject:
    """Open the network that images are shown to.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is unreadable, or the request makes no sense.
    """
    numbers = (config.batch, config.max_images if config.max_images is not None else 1)
    if min(numbers) < 1 or config.num_workers < 0 or config.seed < 0:
        raise ValueError(
            f"batch is {config.batch}, max-images {config.max_images}, num-workers "
            f"{config.num_workers}, seed {config.seed}, expected 1 or more of the first two"
        )
    return Subject(open_network(config), config, console)


def open_network(config: NetworkConfig) -> Frozen:
    """Open the network that is asked for; raises as `open_subject`."""
    if (config.checkpoint is None) == (config.model is None):
        raise ValueError("give either --checkpoint or --model")
    device = choose_device(ComputeConfig(device=config.device))
    if config.model is not None:
        if config.image_size is not None or config.precision != "fp32":
            raise ValueError("a model file has its own image size and precision")
        return open_model(config.model, device)
    assert config.checkpoint is not None
    if config.image_size is not None and config.image_size not in SIDES:
        expected = f"{SIDES.start} to {SIDES.stop - 1}"
        raise ValueError(f"image size is {config.image_size}, expected {expected}")
    return open_checkpoint(
        config.checkpoint,
        config.which,
        image_size=config.image_size,
        device=device,
        precision=config.precision,
    )


def open_checkpoint(
    path: Path,
    network: Network,
    *,
    image_size: int | None,
    device: torch.device,
    precision: Literal["fp32", "bf16"],
) -> Frozen:
    """Read a network into torch.

    Args:
        path: A published checkpoint, weights of ours, a run's folder or one of its checkpoints.
        network: Which of the two, where there are two.
        image_size: Side in pixels; if not given, of a run that of its global views, else 224 px.
        device: Where to run.
        precision: Of matrix products.

    Raises:
        FileNotFoundError: if there is no such file, or no checkpoint in the folder.
        ValueError: if it is unreadable, or of no backbone that is known.
    """
    weights = read_network(path, network)
    size = image_size or _size_of_run(path) or IMAGE_SIZE
    spec = preprocessing(size)
    backbone = weights.build_backbone().to(device)

    @torch.inference_mode()
    def run(pixels: Tensor, output: Output) -> Tensor:
        images = normalize(pixels.to(device, non_blocking=True), spec.mean, spec.std)
        with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
            return _ask(backbone, images, output).float().cpu()

    return Frozen(
        file=str(path),
        network=network,
        arch=backbone_name(weights.backbone) or "own",
        spec=spec,
        digest=digest(backbone.state_dict()),
        arithmetic=f"torch, {device.type}, {precision}",
        run=run,
    )


def open_model(path: Path, device: torch.device) -> Frozen:
    """Load a model file into ONNX Runtime; its passport says how images become its pixels.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no model file of this format.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    cuda = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, [*cuda, "CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a class of its own for every kind of damage
        raise ValueError(f"{path}: ONNX Runtime cannot load it") from error
    passport = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY)
    if passport is None:
        raise ValueError(f"{path}: not written by trainer.export_onnx, it has no passport")
    try:
        info = ModelInfo.from_json(passport)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error

    def run(pixels: Tensor, output: Output) -> Tensor:
        interleaved = pixels.permute(0, 2, 3, 1).contiguous().numpy()  # (B, S, S, 3)
        (found,) = session.run([output], {INPUT: interleaved})
        return torch.from_numpy(found)

    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    provider = session.get_providers()[0].removesuffix("ExecutionProvider").lower()
    return Frozen(
        file=str(path),
        network=None,
        arch=info.arch,
        spec=info.preprocess,
        digest=sha256,
        arithmetic=f"onnxruntime, {provider}, {info.precision}",
        run=run,
    )


def read_network(path: Path, network: Network) -> Weights:
    """Read a network from whatever holds one; arguments and errors as of `open_checkpoint`."""
    if path.is_dir():
        found = load_latest(path / CHECKPOINTS)
        if found is None:
            raise FileNotFoundError(f"{path} holds no checkpoint of a run")
        return _of_checkpoint(found, network)
    if path.suffix == ".safetensors" and "state" in _metadata(path):
        return _of_checkpoint(load_checkpoint(path), network)
    return read_weights(path, network)


def _ask(backbone: Backbone, images: Tensor, output: Output) -> Tensor:
    """Give one output of a backbone for normalised images (B, 3, S, S)."""
    match output:
        case "last_blocks":
            return backbone.last_blocks(images, NUM_LAST_BLOCKS)
        case "attention":
            return backbone.attention(images)
        case "embedding":
            return cast(Features, backbone(images)).pooled
        case "regions":
            return cast(Features, backbone(images)).regions


def _of_checkpoint(checkpoint: Checkpoint, network: Network) -> Weights:
    """Take a network's backbone out of what a run has saved."""
    tensors = below(network, checkpoint.tensors)
    state = {name: x for name, x in tensors.items() if not name.startswith(HEADS)}
    about: dict[str, Any] = {"step": checkpoint.step, "file": checkpoint.path.name}  # JSON values
    config = _config_of_run(checkpoint.path.parent.parent) or {}
    about |= {name: config[name] for name in ("recipe", "licence") if name in config}
    return Weights(state=state, backbone=recognise_backbone(state), about=about)


def _metadata(path: Path) -> dict[str, str]:
    """Read what a safetensors file says of itself; nothing if it cannot be read."""
    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError):  # read_weights says what is wrong
        return {}


def _size_of_run(path: Path) -> int | None:
    """Give the side of the global views of the run that this is the folder or a checkpoint of."""
    if not path.is_dir() and path.parent.name != CHECKPOINTS:
        return None
    folder = path if path.is_dir() else path.parent.parent
    config = _config_of_run(folder)
    try:
        return None if config is None else int(config["crops"]["global_size"])
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(
            f"{folder / CONFIG} does not say how large its views are: {error!r}"
        ) from error


def _config_of_run(path: Path) -> dict[str, Any] | None:  # JSON
    """Read what the run of a folder was asked for; None if it is no folder of a run."""
    config = path / CONFIG
    if not config.is_file():
        return None
    try:
        found = json.loads(config.read_text())
    except ValueError as error:
        raise ValueError(f"{config} is no JSON: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"{config} holds no settings of a run")
    return found

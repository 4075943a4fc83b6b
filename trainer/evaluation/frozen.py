"""The network that is measured, frozen: a checkpoint in torch, or a model file as it is served.

Whichever it is, it takes what the service's preprocessing makes of an image and gives the outputs
of the model-file contract, so every protocol can be run on both.

Shapes: B images, S the side of the model's square, C and D features, L regions.
"""

import hashlib
from pathlib import Path
from typing import Literal, cast

import onnxruntime
import torch
from rich.console import Console
from torch import Tensor

from esvit.backbones import Backbone, Features
from esvit.config import backbone_name
from esvit.weights import Network, digest
from service.contract import INPUT, METADATA_KEY, ModelInfo, Output
from trainer.config import ComputeConfig
from trainer.data.loader import LoaderConfig
from trainer.devices import choose_device
from trainer.evaluation.config import ImagesConfig, NetworkConfig
from trainer.evaluation.images import preprocessing
from trainer.evaluation.subject import Frozen, Subject
from trainer.expect import expect
from trainer.onnx_graph import NUM_LAST_BLOCKS
from trainer.pixel_ops import normalize
from trainer.stored_network import check_image_size, image_size_of, read_network


def open_subject(config: ImagesConfig, console: Console) -> Subject:
    """Open the network that images are shown to.

    Raises:
        FileNotFoundError: if it is not there.
        ValueError: if it is unreadable, or the request makes no sense.
    """
    expect(config.batch >= 1, "1 or more", batch=config.batch)
    is_some = config.max_images is None or config.max_images >= 1
    expect(is_some, "1 or more", max_images=config.max_images)
    expect(config.seed >= 0, "0 or more", seed=config.seed)
    LoaderConfig(num_workers=config.num_workers)  # it says what is wrong with it
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
    check_image_size(config.image_size)
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
    """Read a network into torch; raises as `read_network`.

    Args:
        path: What holds it.
        network: Which of the two, where there are two.
        image_size: Side in pixels; if not given, of a run that of its global views, else 224 px.
        device: Where to run.
        precision: Of matrix products.
    """
    weights = read_network(path, network)
    spec = preprocessing(image_size or image_size_of(weights))
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
    if path.is_dir():
        raise ValueError(f"{path} is a folder, expected a model file; a run is a --checkpoint")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    cuda = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, [*cuda, "CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime raises a class of its own for every kind of damage
        raise ValueError(f"{path}: ONNX Runtime cannot load it") from error
    if session.get_providers()[0] != [*cuda, "CPUExecutionProvider"][0]:
        raise ValueError("ONNX Runtime cannot use the CUDA device; it needs onnxruntime-gpu")
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

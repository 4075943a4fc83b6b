"""Command: a backbone -> one ONNX file with its passport, checked against torch.

`python -m trainer.export_onnx --checkpoint FILE --out model.onnx`, or `--untrained --arch NAME` for
a first start without weights. The file is compared with torch on photographs before it is written;
one that differs is not.

Exit codes: 0 written; 1 it differs; 2 the request cannot be met; 130 interrupted.
"""

import hashlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import onnxruntime
import torch
import tyro
from numpy.typing import NDArray
from rich.console import Console
from torch import Tensor

from esvit.backbones import Backbone, build
from esvit.config import BACKBONES, backbone_config, backbone_name
from esvit.files import replacing
from esvit.weights import Network, digest
from service.contract import INPUT, OUTPUTS, ModelInfo, Output, PreprocessSpec
from service.model_file import read_model_info
from service.parity import MIN_COSINE, least_cosines, photograph_pixels
from trainer.command_line import read_arguments
from trainer.evaluation.config import default_cache
from trainer.evaluation.images import preprocessing
from trainer.onnx_graph import Pixels2Outputs, output_shapes, serialise, to_fp16, trace
from trainer.stored_network import IMAGE_SIZE, check_image_size, image_size_of, read_network
from trainer.triton import repository_files, triton_config
from trainer.whitening import Begin, learn_whitening

MAX_DIFFERENCE = 1e-4
"""Of any output value, between a float32 file and torch, in outputs of up to `USUAL_SIZE`."""

USUAL_SIZE = 10.0
"""Largest value of a transformer's output. An untrained ResNet's are hundreds, and float32 rounds
in proportion; there so much more is allowed."""

BATCHES = (1, 2, 7)


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """Export a backbone to one ONNX file and check it against torch.

    Attributes:
        out: The file to write.
        triton_repository: Folder in which to write it as a model of Triton's as well.
        checkpoint: A published checkpoint, weights of ours (.safetensors), a run's folder or one
            of its checkpoints.
        untrained: Export fresh weights instead of a checkpoint.
        which: The network of a checkpoint that holds both.
        arch: Name of the backbone; told from the checkpoint where there is one.
        seed: Seed of fresh weights.
        image_size: Side in pixels of the square that the model sees: 32 to 1024; if not given, of
            a run that of its global views, else 224.
        whiten: Images like those that will be embedded: embeddings are whitened by their principal
            components.
        whiten_from: What whitening begins with: the pooled feature, or the layout of all stages'
            maps, which suits pictures of one thing in the middle.
        cache: Folder where features of those images are kept for the next time.
        precision: Precision of weights and products; inputs and outputs keep their types.
    """

    out: Path
    triton_repository: Path | None = None
    checkpoint: Path | None = None
    untrained: tyro.conf.FlagCreatePairsOff[bool] = False
    which: Network = "teacher"
    arch: str | None = None
    seed: int = 0
    image_size: int | None = None
    whiten: str | None = None
    whiten_from: Begin = "pooled"
    cache: Path = field(default_factory=default_cache)
    precision: Literal["fp32", "fp16"] = "fp32"


class Source(NamedTuple):
    """A backbone, the side of its images, and what its passport says of where it is from."""

    backbone: Backbone
    image_size: int
    arch: str
    name: str
    training: dict[str, Any] | None  # JSON values
    licence: str


class Graph(NamedTuple):
    """What is exported, and what its passport says of how embeddings were whitened."""

    module: Pixels2Outputs
    whitening: dict[str, str | int] | None


class Comparison(NamedTuple):
    """How far one output of one batch is from torch's.

    Attributes:
        batch: How many images.
        output: Which.
        difference: The largest of any value.
        size: The largest value itself.
        cosine: The smallest along the last axis.
    """

    batch: int
    output: Output
    difference: float
    size: float
    cosine: float

    @property
    def is_rounding(self) -> bool:
        """Whether float32 may differ so much; NaN may not."""
        return self.difference <= MAX_DIFFERENCE * max(1.0, self.size / USUAL_SIZE)


def check(config: ExportConfig) -> None:
    """Refuse a request that cannot be met, before any work.

    Not in the config itself: there the command line would put a box around the one clear line.

    Raises:
        OSError: if there can be no folder for the file.
        ValueError: if arguments are missing, contradict each other or are out of range.
    """
    if (config.checkpoint is None) != config.untrained:
        raise ValueError("give either --checkpoint or --untrained")
    if config.untrained and config.arch is None:
        raise ValueError(f"--untrained needs --arch, one of {', '.join(BACKBONES)}")
    if config.whiten is None and config.whiten_from != ExportConfig.whiten_from:
        raise ValueError(f"--whiten-from {config.whiten_from} needs --whiten, images to learn from")
    check_image_size(config.image_size)
    if config.out.is_dir():
        raise ValueError(f"{config.out} is a folder, expected the name of a file")
    try:
        config.out.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(
            f"{config.out.parent} is, or lies in, a file: expected a folder"
        ) from error
    if not os.access(config.out.parent, os.W_OK):
        raise ValueError(f"{config.out.parent} cannot be written to")


def load(config: ExportConfig) -> Source:
    """Make the backbone that is asked for.

    Raises:
        FileNotFoundError: if there is no such checkpoint.
        ValueError: if the name is unknown, or the checkpoint unreadable or of another backbone.
    """
    if config.arch is not None:
        row = backbone_config(config.arch)
    if config.checkpoint is None:
        torch.manual_seed(config.seed)
        arch = str(config.arch)
        size = config.image_size or IMAGE_SIZE
        return Source(build(row).eval(), size, arch, f"{arch}-untrained", None, "Apache-2.0")
    weights = read_network(config.checkpoint, config.which)
    size = config.image_size or image_size_of(weights)
    arch = backbone_name(weights.backbone) or weights.backbone.kind
    if config.arch is not None and arch != config.arch:
        raise ValueError(f"{config.checkpoint} holds {arch}, not {config.arch}")
    backbone = weights.build_backbone()
    name = f"{arch}-{digest(backbone.state_dict())[:8]}"
    training = {**weights.about}
    if config.checkpoint.is_file():
        with config.checkpoint.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        training |= {"file": config.checkpoint.name, "file_sha256": sha256}
    licence = str(weights.about.get("licence", "NOASSERTION"))
    return Source(backbone, size, arch, name, training, licence)


def make_graph(config: ExportConfig, source: Source, console: Console) -> Graph:
    """Put a backbone between its preprocessing and its whitening.

    Raises:
        FileNotFoundError: if the images to learn whitening from are not there.
        ValueError: if they are too few.
    """
    pixels2outputs = Pixels2Outputs(source.backbone, preprocessing(source.image_size)).eval()
    if config.whiten is None:
        return Graph(pixels2outputs, None)
    whitened = learn_whitening(
        pixels2outputs, config.whiten, config.whiten_from, config.cache, console
    )
    pixels2outputs.embed = whitened
    return Graph(pixels2outputs, {"from": whitened.begin, "images": whitened.num_images})


def export(source: Source, graph: Graph, precision: Literal["fp32", "fp16"]) -> bytes:
    """Make the bytes of a model file."""
    spec = graph.module.spec
    model = trace(graph.module)
    info = ModelInfo(
        name=source.name if graph.whitening is None else f"{source.name}-whitened",
        arch=source.arch,
        outputs=output_shapes(model),
        grid=source.backbone.grid(spec.crop, spec.crop),
        preprocess=spec,
        training=source.training,
        licence=source.licence,
        precision=precision,
        weights_sha256=digest(weights_of(graph.module)),
        whitening=graph.whitening,
    )
    return serialise(to_fp16(model) if precision == "fp16" else model, info)


def weights_of(graph: Pixels2Outputs) -> dict[str, Tensor]:
    """Name what a file's weights are: the backbone's, and the whitening's if there is one."""
    state = graph.backbone.state_dict()
    if graph.embed is None:
        return state
    return {**state, **{f"embed.{name}": x for name, x in graph.embed.state_dict().items()}}


def compare(data: bytes, graph: Pixels2Outputs) -> list[Comparison]:
    """Run a model file in ONNX Runtime beside torch, on photographs in batches of every size."""
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    comparisons = []
    for batch in BATCHES:
        pixels = _photographs(graph.spec, batch)
        with torch.inference_mode():
            expected = graph(torch.from_numpy(pixels))
        actual = session.run(list(OUTPUTS), {INPUT: pixels})
        for output, a, b in zip(OUTPUTS, actual, expected, strict=True):
            comparisons.append(_comparison(batch, output, a, b.numpy()))
    return comparisons


def is_equal(comparisons: list[Comparison], precision: Literal["fp32", "fp16"]) -> bool:
    """Whether a file is as near to torch as its precision must be; NaN is not near."""
    if precision == "fp32":
        return all(found.is_rounding for found in comparisons)
    return all(found.cosine >= MIN_COSINE for found in comparisons)


def write(path: Path, data: bytes) -> None:
    """Write a file, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def main(argv: list[str] | None = None) -> int:
    """Run the command and give its exit code."""
    config = read_arguments(
        lambda: tyro.cli(ExportConfig, args=argv, prog="python -m trainer.export_onnx")
    )
    try:
        return run(config)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted; {config.out} is as it was\n")
        return 130


def run(config: ExportConfig) -> int:
    """Write a model file that equals torch, say how near it is, and give the exit code.

    Raises:
        OSError: if a file is missing, or the disk does not take another.
        ValueError: if the request cannot be met.
    """
    check(config)
    source = load(config)
    graph = make_graph(config, source, Console(stderr=True))
    data = export(source, graph, config.precision)
    console = Console(width=100, highlight=False)
    comparisons = compare(data, graph.module)
    for batch, output, difference, size, cosine in comparisons:
        console.print(
            f"batch {batch}  {output:<12} {difference:.2e} in {size:<8.3g} cosine {cosine:.6f}"
        )
    if not is_equal(comparisons, config.precision):
        sys.stderr.write(f"{config.out} not written: the graph differs from torch\n")
        return 1
    write(config.out, data)
    info = read_model_info(config.out)
    if config.triton_repository is not None:
        config_path, model_path = repository_files(config.triton_repository, info)
        write(config_path, triton_config(info).encode())
        write(model_path, data)
    written = f"{info.name}, {config.precision}, {len(data) / 1e6:.1f} MB"
    console.print(f"{config.out}: {written}", soft_wrap=True)
    return 0


def _comparison(
    batch: int, output: Output, actual: NDArray[np.float32], expected: NDArray[np.float32]
) -> Comparison:
    """Measure how far two arrays are apart."""
    cosine = least_cosines({output: actual}, {output: expected})[output]
    difference = np.abs(actual - expected).max(initial=0.0)
    size = np.abs(expected).max(initial=0.0)
    return Comparison(batch, output, float(difference), float(size), cosine)


def _photographs(spec: PreprocessSpec, count: int) -> NDArray[np.uint8]:
    """Make (count, crop, crop, 3) pixels of the photographs that come with the service."""
    pixels = photograph_pixels(spec)
    return np.concatenate([pixels, pixels[:, :, ::-1], pixels[:, ::-1]])[:count]


if __name__ == "__main__":
    sys.exit(main())

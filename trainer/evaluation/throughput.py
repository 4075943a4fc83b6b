"""How fast backbones are: images a second, memory and arithmetic, as in the paper's table 1.

Each network and precision is measured in a process of its own, so that its peak memory is its own.
"""

from collections.abc import Callable, Iterator
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from esvit.backbones import BackboneConfig, build
from esvit.config import BACKBONES, backbone_config, backbone_name
from esvit.native.library import torch_only
from trainer.config import ComputeConfig
from trainer.devices import choose_device
from trainer.evaluation.config import ThroughputConfig
from trainer.evaluation.frozen import open_model
from trainer.evaluation.progress import show_progress
from trainer.evaluation.timing import Job, Precision, case_of, device_name, run
from trainer.expect import expect
from trainer.stored_network import IMAGE_SIZE, check_image_size, image_size_of, read_network

PAPER = {
    "resnet50": 1237,
    "deit_small_p16": 1007,
    "deit_small_p8": 180,
    "vit_base_p16": 312,
    "vit_base_p8": 63,
    "swin_tiny_w7": 808,
    "swin_small_w7": 467,
    "swin_base_w7": 297,
    "swin_small_w14": 383,
    "swin_base_w14": 254,
    "vil_2262": 386,
    "cvt_tiny": 848,
}
"""Images a second in the paper's tables 1 and 4, on one V100."""

YARDSTICK = "vit_base_p8"
"""What the table's ratios are to: the paper's headline is Swin-B of window 14 beside it."""


def measure_throughput(config: ThroughputConfig, console: Console) -> dict[str, Any]:  # JSON
    """Measure networks one after the other.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a network is unknown, or numbers make no sense.
    """
    check(config)
    device = choose_device(ComputeConfig(device=config.device))
    networks, side = _networks(config), _side(config)
    jobs = [
        Job(
            name=name,
            network=network,
            precision=precision,
            batches=tuple(sorted(config.batches)),
            side=side,
            repeats=config.repeats,
            device=device.type,
            compiled=config.compiled,
        )
        for name, network in networks.items()
        for precision in _precisions(network, config)
    ]
    cases: list[dict[str, Any]] = []
    with show_progress(console, "throughput", len(jobs), "networks") as advance:
        for job in jobs:
            cases += in_own_process(job)
            advance(1)
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "compiled": config.compiled,
        "image_size": side,
        "networks": {
            name: describe(network, side)
            for name, network in networks.items()
            if not isinstance(network, Path)
        },
        "cases": with_ratios(cases),
    }


def check(config: ThroughputConfig) -> None:
    """Refuse a request that makes no sense, before any work.

    Raises:
        ValueError: if it is one.
    """
    named = (bool(config.arch), config.all, bool(config.checkpoint), bool(config.model))
    if sum(named) != 1:
        raise ValueError("give one of --arch, --all, --checkpoint and --model")
    check_image_size(config.image_size)
    if config.model and (config.image_size or config.precisions != ThroughputConfig.precisions):
        raise ValueError("a model file has its own image size and precision")
    expect(min(config.batches, default=0) >= 1, "one or more, of 1 or more", batches=config.batches)
    expect(len(config.precisions) >= 1, "one or more", precisions=config.precisions)
    expect(config.repeats >= 1, "1 or more", repeats=config.repeats)


def describe(config: BackboneConfig, side: int) -> dict[str, float]:
    """Count parameters, and multiply-adds of one image, which papers call FLOPs."""
    network = build(config).eval().requires_grad_(False)
    counter = FlopCounterMode(display=False, custom_mapping=_products_of_onednn())
    # Attention written out: of operators in one the counter knows few, of our kernels none.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), torch_only(), counter:
        network(torch.zeros(1, 3, side, side))
    return {
        "parameters_m": sum(p.numel() for p in network.parameters()) / 1e6,
        "gmacs": counter.get_total_flops() / 2e9,
    }


def _products_of_onednn() -> dict[Any, Callable[..., int]]:  # torch's operators have no type
    """Tell the counter of the operator by which linear layers go on a CPU."""
    operator = getattr(torch.ops.mkldnn, "_linear_pointwise", None)

    def count(x: torch.Size, *_: object, out_shape: torch.Size, **__: object) -> int:
        return 2 * x[-1] * out_shape.numel()

    return {operator: count} if operator else {}


def with_ratios(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:  # JSON
    """Put beside each case how many times the yardstick's images it does, here and in the paper."""
    yardsticks = {
        (case["precision"], case["batch"]): case["images_per_s"]
        for case in cases
        if case["name"] == YARDSTICK and "images_per_s" in case
    }
    for case in cases:
        if paper := PAPER.get(case["name"]):
            case["paper_images_per_s"] = paper
            beside = yardsticks.get((case["precision"], case["batch"]))
            if beside and "images_per_s" in case:
                case[f"times_{YARDSTICK}"] = case["images_per_s"] / beside
                case[f"paper_times_{YARDSTICK}"] = paper / PAPER[YARDSTICK]
    return cases


def _networks(config: ThroughputConfig) -> dict[str, BackboneConfig | Path]:
    """Give what is to be measured, by name."""
    if config.model is not None:
        return {config.model.name: config.model}
    if config.checkpoint is not None:
        found = read_network(config.checkpoint, config.which).backbone
        return {backbone_name(found) or "own": found}
    names = [name for name in BACKBONES if name in PAPER] if config.all else config.arch
    return {name: backbone_config(name) for name in names}


def _side(config: ThroughputConfig) -> int:
    """Give the side in pixels: as asked, of the file, or the published one."""
    if config.model is not None:  # if it cannot be read it is refused here, in this process
        return open_model(config.model, torch.device("cpu")).spec.crop
    if config.image_size is None and config.checkpoint is not None:
        return image_size_of(read_network(config.checkpoint, config.which))
    return config.image_size or IMAGE_SIZE


def _precisions(network: BackboneConfig | Path, config: ThroughputConfig) -> tuple[Precision, ...]:
    """Give the precisions to measure a network at."""
    return ("own",) if isinstance(network, Path) else config.precisions


def in_own_process(job: Job) -> Iterator[dict[str, Any]]:  # JSON
    """Measure a job in a fresh process, case by case; if the system ends it, say at which."""
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_hand_over, args=(job, sender), daemon=True)
    process.start()
    sender.close()
    num_cases = 0
    try:
        while isinstance(case := receiver.recv(), dict):
            yield case
            num_cases += 1
        if isinstance(case, Exception):
            raise case
    except EOFError:
        unmeasured = case_of(job, job.batches[min(num_cases, len(job.batches) - 1)])
        yield unmeasured | {"error": "process was ended; out of memory?"}
    finally:
        process.terminate()
        process.join()
        receiver.close()


def _hand_over(job: Job, sender: Connection) -> None:
    """Send each case as soon as it is measured, then None, or what went wrong."""
    try:
        for case in run(job):
            sender.send(case)
        sender.send(None)
    except Exception as error:  # for the one who asked to raise
        sender.send(error)

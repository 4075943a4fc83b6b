"""How fast backbones are: images a second, memory and arithmetic, as in the paper's table 1.

Each network and precision is measured in a process of its own, so that its peak memory is its own;
batches come in ascending order. A time is the median of several passes after two that do not count,
the device waited for.

Shapes: B images, S the side of the square.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from esvit.backbones import BackboneConfig, build
from esvit.config import BACKBONES, backbone_config, backbone_name
from trainer.config import ComputeConfig
from trainer.devices import choose_device
from trainer.evaluation.config import ThroughputConfig
from trainer.evaluation.features import show_progress
from trainer.evaluation.frozen import open_model, read_network

Precision = Literal["fp32", "bf16", "own"]

NUM_WARM_UP = 2

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


@dataclass(frozen=True, kw_only=True)
class Job:
    """One network at one precision.

    Attributes:
        name: What it is called.
        network: Its config, or a model file.
        precision: Of matrix products; a model file has its own.
        batches: Images of a pass, ascending.
        side: S of a backbone; a model file has its own.
        repeats: Passes that count.
        device: Where.
        compiled: Whether a backbone goes through torch.compile.
    """

    name: str
    network: BackboneConfig | Path
    precision: Precision
    batches: tuple[int, ...]
    side: int
    repeats: int
    device: str
    compiled: bool


def measure_throughput(config: ThroughputConfig, console: Console) -> dict[str, Any]:  # JSON
    """Measure networks one after the other.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a network is unknown, or numbers make no sense.
    """
    check(config)
    device = choose_device(ComputeConfig(device=config.device))
    networks = _networks(config)
    jobs = [
        Job(
            name=name,
            network=network,
            precision=precision,
            batches=tuple(sorted(config.batches)),
            side=config.image_size,
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
            cases += _in_own_process(job)
            advance(1)
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "compiled": config.compiled,
        "image_size": config.image_size,
        "networks": {
            name: describe(network, config.image_size)
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
    numbers = (*config.batches, config.repeats, config.image_size)
    if not config.batches or not config.precisions or min(numbers) < 1:
        raise ValueError(
            f"batches are {config.batches}, precisions {config.precisions}, repeats "
            f"{config.repeats}, image-size {config.image_size}, expected 1 or more of each"
        )


def describe(config: BackboneConfig, side: int) -> dict[str, float]:
    """Count parameters, and multiply-adds of one image, which papers call FLOPs."""
    network = build(config).eval()
    counter = FlopCounterMode(display=False)
    # Written out, so that the counter sees the products inside attention on every device.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        network(torch.zeros(1, 3, side, side))
    return {
        "parameters_m": sum(p.numel() for p in network.parameters()) / 1e6,
        "gmacs": counter.get_total_flops() / 2e9,
    }


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


def run(job: Job) -> list[dict[str, Any]]:  # JSON
    """Measure a job in this process; a batch that does not fit the memory ends it."""
    ask, side = _open(job)
    device = torch.device(job.device)
    cases = []
    for batch in job.batches:
        case: dict[str, Any] = {"name": job.name, "precision": job.precision, "batch": batch}
        cases.append(case)
        try:
            seconds = _time(ask, _input(job, batch, side), job.repeats, device)
        except torch.OutOfMemoryError:
            case["error"] = "out of memory"
            break
        median = statistics.median(seconds)
        case |= {
            "images_per_s": batch / median,
            "fastest_images_per_s": batch / min(seconds),
            "slowest_images_per_s": batch / max(seconds),
            "peak_mb": peak_mb(device),
        }
    return cases


def device_name(device: torch.device) -> str:
    """Name the device as its maker does."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    lines = _lines(Path("/proc/cpuinfo"))
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "cpu")


def peak_mb(device: torch.device) -> float | None:
    """Give the most memory held: of the device on CUDA, of the process on a CPU (Linux only)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    lines = _lines(Path("/proc/self/status"))
    return next((int(line.split()[1]) * 1024 / 1e6 for line in lines if "VmHWM" in line), None)


def _lines(path: Path) -> list[str]:
    """Read what the system says of itself; nothing where it says nothing."""
    return path.read_text().splitlines() if path.is_file() else []


def _networks(config: ThroughputConfig) -> dict[str, BackboneConfig | Path]:
    """Give what is to be measured, by name."""
    if config.model is not None:
        open_model(config.model, torch.device("cpu"))  # refused here, not in another process
        return {config.model.name: config.model}
    if config.checkpoint is not None:
        found = read_network(config.checkpoint, config.which).backbone
        return {backbone_name(found) or "own": found}
    names = [name for name in BACKBONES if name in PAPER] if config.all else config.arch
    return {name: backbone_config(name) for name in names}


def _precisions(network: BackboneConfig | Path, config: ThroughputConfig) -> tuple[Precision, ...]:
    """Give the precisions to measure a network at."""
    return ("own",) if isinstance(network, Path) else config.precisions


def _in_own_process(job: Job) -> list[dict[str, Any]]:  # JSON
    """Measure a job in a fresh process; if the system ends it, say so."""
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(run, job).result()
        except BrokenProcessPool:
            case = {"name": job.name, "precision": job.precision, "batch": job.batches[-1]}
            return [{**case, "error": "process was ended; out of memory?"}]


def _open(job: Job) -> tuple[Callable[[Tensor], object], int]:
    """Make the network, and give the side of its images."""
    device = torch.device(job.device)
    if isinstance(job.network, Path):
        frozen = open_model(job.network, device)
        return lambda pixels: frozen.run(pixels, "embedding"), frozen.spec.crop
    network = build(job.network).eval().to(device)
    if job.compiled:
        network.compile()

    @torch.inference_mode()
    def ask(images: Tensor) -> object:
        with torch.autocast(device.type, torch.bfloat16, enabled=job.precision == "bf16"):
            return network(images)

    return ask, job.side


def _input(job: Job, batch: int, side: int) -> Tensor:
    """Make a batch: of pixels for a model file, of normalised images for a backbone."""
    if isinstance(job.network, Path):
        return torch.zeros(batch, 3, side, side, dtype=torch.uint8)
    return torch.rand(batch, 3, side, side, device=job.device)


def _time(
    ask: Callable[[Tensor], object], images: Tensor, repeats: int, device: torch.device
) -> Sequence[float]:
    """Time passes in seconds, after some that do not count."""
    seconds = []
    for _ in range(NUM_WARM_UP + repeats):
        start = time.perf_counter()
        ask(images)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return seconds[NUM_WARM_UP:]

"""The time and memory of one network's forward passes, in this process.

Batches come in ascending order, so that the peak of memory is each one's own. A time is the median
of several passes after two that do not count, the device waited for.

Shapes: S the side of the square that the network sees.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from esvit.backbones import BackboneConfig, build
from trainer.evaluation.frozen import open_model

Precision = Literal["fp32", "bf16", "own"]

NUM_WARM_UP = 2


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


def run(job: Job) -> Iterator[dict[str, Any]]:  # JSON
    """Measure a job in this process; a batch that does not fit the memory ends it."""
    ask, side = _open(job)
    device = torch.device(job.device)
    for batch in job.batches:
        try:
            seconds = _time(ask, _input(job, batch, side), job.repeats, device)
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            yield case_of(job, batch) | {"error": "out of memory"}
            return
        median = statistics.median(seconds)
        yield case_of(job, batch) | {
            "images_per_s": batch / median,
            "fastest_images_per_s": batch / min(seconds),
            "slowest_images_per_s": batch / max(seconds),
            # torch does not know what ONNX Runtime takes of a device.
            "peak_mb": None if _is_file_on_device(job) else peak_mb(device),
        }


def case_of(job: Job, batch: int) -> dict[str, Any]:  # JSON
    """Name a measurement."""
    return {"name": job.name, "precision": job.precision, "batch": batch}


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


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Tell what torch raises for want of memory; on a CPU it has no class of its own."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _is_file_on_device(job: Job) -> bool:
    """Tell whether a model file runs on something else than a CPU."""
    return isinstance(job.network, Path) and job.device != "cpu"


def _lines(path: Path) -> list[str]:
    """Read what the system says of itself; nothing where it says nothing."""
    return path.read_text().splitlines() if path.is_file() else []


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

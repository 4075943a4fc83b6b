"""What a run computes on, chosen by what this machine has."""

from time import perf_counter
from typing import Literal

import torch

from trainer import distributed
from trainer.config import ComputeConfig

Precision = Literal["fp32", "bf16"]


def choose_device(config: ComputeConfig) -> torch.device:
    """Choose this process's device.

    Raises:
        ValueError: if a CUDA device is asked for and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("compute.device is cuda, but there is no CUDA device")
    return torch.device("cpu") if config.device == "cpu" else distributed.local_device()


def choose_precision(
    config: ComputeConfig, device: torch.device, before: Precision | None = None
) -> Precision:
    """Choose bf16 where it makes products faster, if the choice is left to us; all call together.

    Args:
        config: The choice, or `auto`.
        device: What the products are computed on.
        before: What the run began with: where only a measurement could tell, it goes on so.

    Returns:
        The same in all processes: fp32 if that is better for any.
    """
    if config.precision != "auto":
        return config.precision
    gains = _cuda_gains() if device.type == "cuda" else _cpu_gains(before)
    return "fp32" if distributed.largest(int(not gains)) else "bf16"


def _cuda_gains() -> bool:
    """Tell whether this CUDA device multiplies bf16 natively."""
    return bool(torch.cuda.is_bf16_supported(including_emulation=False))


def _cpu_gains(before: Precision | None) -> bool:
    """Tell whether this CPU multiplies bf16 faster than fp32.

    With AMX it always does. AVX512-BF16 alone says little: some CPUs double their speed with it,
    others halve it.
    """
    able = torch.cpu.get_capabilities()
    if able.get("amx_bf16") or not able.get("avx512_bf16"):
        return bool(able.get("amx_bf16"))
    if before is not None:
        return before == "bf16"
    return product_speedup() > 1.25  # less would be lost again in casts


def product_speedup() -> float:
    """Measure how many times as fast as in fp32 a matrix product in bf16 is on this CPU.

    A tenth of a second; in turn and the fastest of each, for a busy machine only adds time.
    """
    fp32 = torch.ones(1024, 1024)
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    for _ in range(5):
        for dtype, found in seconds.items():
            matrix = fp32.to(dtype)
            started = perf_counter()
            matrix @ matrix
            found.append(perf_counter() - started)
    return min(seconds[torch.float32]) / min(seconds[torch.bfloat16])


def count_passes(share: int, images_per_pass: int) -> int:
    """Count the fewest equal parts of a process's share of a batch that are small enough."""
    return next(
        passes
        for passes in range(1, share + 1)
        if share % passes == 0 and share // passes <= images_per_pass
    )

"""What a run computes on, chosen by what this machine has."""

from typing import Literal

import torch

from trainer import distributed
from trainer.config import ComputeConfig


def choose_device(config: ComputeConfig) -> torch.device:
    """Choose this process's device.

    Raises:
        ValueError: if a CUDA device is asked for and there is none.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("compute.device is cuda, but there is no CUDA device")
    return torch.device("cpu") if config.device == "cpu" else distributed.local_device()


def choose_precision(config: ComputeConfig, device: torch.device) -> Literal["fp32", "bf16"]:
    """Choose bf16 where the device multiplies it natively, if the choice is left to us."""
    if config.precision != "auto":
        return config.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    able = torch.cpu.get_capabilities()
    return "bf16" if able.get("amx_bf16") or able.get("avx512_bf16") else "fp32"


def count_passes(share: int, images_per_pass: int) -> int:
    """Count the fewest equal parts of a process's share of a batch that are small enough."""
    return next(
        passes
        for passes in range(1, share + 1)
        if share % passes == 0 and share // passes <= images_per_pass
    )

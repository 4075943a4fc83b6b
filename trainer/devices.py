"""What a run computes on, chosen by what this machine has, and how it holds memory there."""

import ctypes
import os
import sys
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


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for what is asked for next, as torch does on CUDA.

    A step on a CPU makes and frees the same large tensors as the one before. glibc gives them back
    to the system, whose fresh pages then cost a bf16 step a tenth of its time. Large tensors are
    also asked for in huge pages, if none was made yet in this process and the environment says
    nothing else in torch's variable for it.

    Returns:
        Whether this system could be told; where it could not, a run is slower, no more.
    """
    if not sys.platform.startswith("linux"):
        return False
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; musl has none
    if mallopt is None:
        return False
    return all(mallopt(option, _LARGEST) for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))

"""How a process holds memory: told to the C library and to torch before the work begins."""

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h
_LARGEST, _LARGE = 2**30, 2**19


def map_large_blocks() -> bool:
    """Let the C library ask the system for each large block, until `keep_freed_memory`.

    What a first step makes to stay, such as kernels for each shape, then lies side by side. Among
    kept memory it would lie wherever there was room, and cut up what later steps could have used
    in one piece: a twentieth of the peak of a step.

    Returns:
        Whether this system could be told.
    """
    return _set(_M_MMAP_THRESHOLD, _LARGE)


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed for what is asked for next, as torch does on CUDA.

    A step on a CPU makes and frees the same large tensors as the one before, and views are made in
    thousands of short-lived buffers. glibc gives them back to the system, whose fresh pages then
    cost a bf16 step a tenth of its time, and views a fifth.

    Returns:
        Whether this system could be told; where it could not, a run is slower, no more.
    """
    return _set(_M_MMAP_THRESHOLD, _LARGEST) and _set(_M_TRIM_THRESHOLD, _LARGEST)


def ask_for_huge_pages() -> None:
    """Let torch ask for large tensors in huge pages, unless the environment says something else.

    It has an effect only before this process makes its first tensor, and on Linux.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def _set(option: int, value: int) -> bool:
    """Set an option of glibc's; other libraries have none."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(option, value))

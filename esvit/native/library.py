"""Compiles the kernels when they are first wanted, as torch.compile does with its own; loads them.

The library is kept in the user's cache, under a name made of its sources and of how it was
compiled, where the next process finds it.
"""

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from ctypes import CDLL, c_float, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

SETTING = "ESVIT_KERNELS"
"""Environment variable: the directory that the library is kept in, or "off" for torch's operators.

A container without a compiler takes the directory along that one with a compiler has filled.
"""

TIMEOUT_SECONDS = 120
"""A compiler that takes longer is given up; it takes six."""

_SOURCES = Path(__file__).parent
_COMPILERS = "g++", "c++"
_FLAGS = (
    *("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"),
    *("-fno-exceptions", "-fno-rtti", "-Wno-psabi", "-fopenmp", "-fPIC", "-shared"),
    # Its threads are to be torch's, whose OpenMP the process has; another would be a second team.
    *("-nodefaultlibs", "-lc", "-lm"),
)
_AVX512 = "-march=x86-64-v4", "-mprefer-vector-width=512"
_AMX = "-mavx512bf16", "-mamx-tile", "-mamx-bf16"
_AMX_IN_CPUINFO = {"avx512_bf16", "amx_tile", "amx_bf16"}


_is_wanted = ContextVar("kernels_are_wanted", default=True)
_TYPES = {"p": c_void_p, "n": c_int64, "i": c_int, "f": c_float}


def load() -> CDLL | None:
    """Give the library, compiled if need be, or None where it cannot be had; the log says why."""
    return _loaded() if _is_wanted.get() else None


@contextmanager
def torch_only() -> Generator[None]:
    """Work by torch's operators in this block: what goes on in kernels, torch does not see."""
    token = _is_wanted.set(False)
    try:
        yield
    finally:
        _is_wanted.reset(token)


@cache
def _loaded() -> CDLL | None:
    setting = os.environ.get(SETTING, "")
    if setting == "off" or not is_made_for(platform.machine()):
        why = f"{SETTING} is off" if setting == "off" else "they take Linux and AVX-512"
        logger.info("no kernels of our own: %s", why)
        return None
    try:
        directory = Path(setting) if setting else _user_cache() / "esvit"
        return CDLL(str(compile_into(directory, amx=has_amx())))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:  # no home is the second
        logger.warning("no kernels of our own, steps will be slower: %s", error)
        return None


@cache
def kernel(name: str, takes: str) -> Callable[..., int]:
    """Give a function of the library, which must be there.

    Args:
        name: Of the function.
        takes: A letter for each argument: p address, n int64, i int, f float.
    """
    library = _loaded()
    assert library is not None
    function = getattr(library, name)
    function.argtypes = [_TYPES[letter] for letter in takes]
    return cast(Callable[..., int], function)


def address(tensor: Tensor | None) -> int | None:
    """Where the values of a contiguous tensor lie, for a kernel."""
    if tensor is None:
        return None
    if not tensor.is_contiguous():
        raise ValueError(f"kernels take contiguous tensors, not strides of {tensor.stride()}")
    return tensor.data_ptr()


def is_bfloat16(x: Tensor) -> int:
    """Which of two types a kernel gets: 1 for bfloat16, 0 for float32."""
    return int(x.dtype == torch.bfloat16)


def takes(x: Tensor, *dtypes: torch.dtype) -> bool:
    """Whether kernels may be given x: on this processor, eagerly, in one of these types."""
    if torch.compiler.is_compiling() or x.device.type != "cpu" or x.dtype not in dtypes:
        return False
    return x.is_contiguous() and load() is not None


def kind() -> str:
    """Say in words which kernels are used: another kind rounds otherwise."""
    if load() is None:
        return "none"
    return "AVX-512 and AMX" if has_tiles() else "AVX-512"


def has_tiles() -> bool:
    """Whether processor and system let the kernels, which must be there, use tiles."""
    return bool(kernel("esvit_has_tiles", "")())


def is_made_for(machine: str) -> bool:
    """Whether this processor and system are those that the kernels were made for."""
    is_known = sys.platform == "linux" and machine == "x86_64"
    return is_known and torch.backends.cpu.get_cpu_capability() == "AVX512"


def compile_into(directory: Path, *, amx: bool) -> Path:
    """Give the library in a directory, compiled unless it is there.

    Args:
        directory: Made if need be.
        amx: Whether for a processor that multiplies tiles.

    Raises:
        FileNotFoundError: If there is no compiler.
        OSError: If the directory cannot be written.
        subprocess.SubprocessError: If the compiler fails.
    """
    flags = (*_FLAGS, *_AVX512, *(_AMX if amx else ()))
    sources = sorted(_SOURCES.glob("*.cpp"))
    parts = [path.read_bytes() for path in (*sources, *sorted(_SOURCES.glob("*.h")))]
    name = hashlib.sha256(b"\0".join([*parts, " ".join(flags).encode()])).hexdigest()[:16]
    path = directory / f"kernels-{name}.so"
    if path.exists():
        return path
    compilers = [*filter(None, map(shutil.which, _COMPILERS))]
    if not compilers:
        raise FileNotFoundError(f"there is no C++ compiler, neither of {', '.join(_COMPILERS)}")
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=directory) as temporary:
        made = Path(temporary, path.name)
        for compiler in compilers:
            command = [compiler, *map(str, sources), "-o", str(made), *flags]
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False
            )
            if not done.returncode:
                made.replace(path)  # whole or not at all, whoever else does the same
                return path
    raise subprocess.SubprocessError(f"{compilers[-1]} failed: {done.stderr.strip()[:1000]}")


@cache
def has_amx() -> bool:
    """Whether this processor multiplies tiles of bfloat16 (Linux)."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    return set(flags) >= _AMX_IN_CPUINFO


def _user_cache() -> Path:
    """Where the user's programs keep what they can make again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")

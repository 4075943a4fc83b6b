"""ONNX Runtime: CUDA where there is one, else the CPU.

On a CPU its graph gains nothing from batches but loses a seventh to splitting an operator over
threads. So one session of one thread is called by as many runners as there are threads, each with
an image; and a second session of all threads answers an image that comes alone, in half the time.

A session traces its first run with a batch of some size, and lays out all results inside of it in
one block for the runs that follow. Results share the place of those that are dead by then, so the
block is small.
"""

import contextlib
import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.contract import INPUT, OUTPUTS, Output
from service.errors import ModelError

CUDA_MAX_BATCH = 32


class OnnxRuntimeEngine:
    """The model file in ONNX Runtime; see `service.engine.Engine`."""

    name = "onnxruntime"
    patience_s = 0.0
    compiled: Sequence[Output] = OUTPUTS

    def __init__(
        self,
        path: Path,
        *,
        device: Literal["cuda", "cpu"],
        precision: str,
        num_threads: int,
        max_batch: int,
    ) -> None:
        """Load the file.

        Args:
            path: The model file.
            device: Where to run.
            precision: Arithmetic of the file.
            num_threads: Threads to use on a CPU.
            max_batch: Images a run; 0 takes what is best for the device.

        Raises:
            ModelError: if ONNX Runtime cannot load it.
        """
        self.precision = precision
        self._on_cuda = device == "cuda"
        self.uses_cpu = not self._on_cuda
        self.provider = "CUDAExecutionProvider" if self._on_cuda else "CPUExecutionProvider"
        if self._on_cuda:
            onnxruntime.preload_dlls()  # CUDA's libraries are Python packages: extra `gpu`
        self._session = _session(path, self.provider, num_threads=1)
        if self._session.get_providers()[0] != self.provider:
            raise ModelError(
                "there is a CUDA device, but ONNX Runtime cannot use it: is the extra 'gpu' "
                "installed? ESVIT_DEVICE=cpu does without"
            )
        self._alone = self._session
        if not self._on_cuda and num_threads > 1:
            self._alone = _session(path, self.provider, num_threads=num_threads)
        self._traced: set[tuple[bool, int]] = set()
        self.num_runners = 1 if self._on_cuda else num_threads
        self.max_batch = max_batch or (CUDA_MAX_BATCH if self._on_cuda else 1)
        _release_freed_memory()

    def run(
        self, pixels: NDArray[np.uint8], outputs: Sequence[Output], *, is_alone: bool = False
    ) -> dict[Output, NDArray[np.float32]]:
        """Give the asked outputs for (B, H, W, 3) pixels."""
        if self._on_cuda:
            return self._run_bound(pixels, outputs)
        session = self._alone if is_alone else self._session
        kind = (session is self._alone, len(pixels))
        options = None if kind in self._traced else _give_back_after()
        arrays = session.run(list(outputs), {INPUT: pixels}, options)
        self._traced.add(kind)
        return dict(zip(outputs, arrays, strict=True))

    def _run_bound(
        self, pixels: NDArray[np.uint8], outputs: Sequence[Output]
    ) -> dict[Output, NDArray[np.float32]]:
        """Run with bound buffers: one copy in, and only what was asked for is copied out."""
        binding = self._session.io_binding()
        binding.bind_ortvalue_input(
            INPUT, onnxruntime.OrtValue.ortvalue_from_numpy(pixels, "cuda", 0)
        )
        for name in outputs:
            binding.bind_output(name, "cuda", 0)
        self._session.run_with_iobinding(binding)
        return dict(zip(outputs, binding.copy_outputs_to_cpu(), strict=True))


def _give_back_after() -> onnxruntime.RunOptions:
    """Free the pool after a run: a traced one has its results in many places, none used again."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def _release_freed_memory() -> None:
    """Give back what loading used and freed: the file's bytes and the weights before packing."""
    with contextlib.suppress(OSError, AttributeError):  # another C library than GNU's
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@functools.cache
def _share_memory() -> None:
    """Set up the process's pool; growing by what is asked for, not by doubling, saves a tenth."""
    onnxruntime.create_and_register_allocator(
        onnxruntime.OrtMemoryInfo(
            "Cpu",
            onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR,
            0,
            onnxruntime.OrtMemType.DEFAULT,
        ),
        onnxruntime.OrtArenaCfg(
            {
                "max_mem": 0,
                "arena_extend_strategy": 1,
                "initial_chunk_size_bytes": -1,
                "max_dead_bytes_per_chunk": -1,
            }
        ),
    )


def _session(path: Path, provider: str, *, num_threads: int) -> onnxruntime.InferenceSession:
    """Make a session; all of them share one pool of memory for what runs need meanwhile."""
    _share_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Results are laid out by what is dead when they are made; ONNX Runtime's own reuse, which comes
    # first, keeps early ones for late ones of the same size.
    options.enable_mem_pattern = provider == "CPUExecutionProvider"
    options.enable_mem_reuse = not options.enable_mem_pattern
    try:
        return onnxruntime.InferenceSession(path, options, providers=[provider])
    except Exception as error:  # ONNX Runtime raises a class of its own for every kind of damage
        raise ModelError(f"ONNX Runtime cannot load {path}: {error}") from error

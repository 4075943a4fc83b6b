"""ONNX Runtime: CUDA where there is one, else the CPU.

On a CPU its graph gains nothing from batches but loses a seventh to splitting an operator over
threads. So one session of one thread is called by as many runners as there are threads, each with
an image; and a second session of all threads answers an image that comes alone, in half the time.
"""

import ctypes
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from service.contract import INPUT, Output
from service.errors import ModelError

CUDA_MAX_BATCH = 32


def has_cuda() -> bool:
    """Tell whether there is a CUDA device: asks the driver, so that without one nothing is loaded.

    Raises:
        ModelError: if there is a device, but ONNX Runtime cannot use it.
    """
    if not _count_cuda_devices():
        return False
    onnxruntime.preload_dlls()
    try:
        onnxruntime.OrtValue.ortvalue_from_numpy(np.zeros(1, np.float32), "cuda", 0)
    except Exception as error:  # whatever ONNX Runtime raises for a missing library
        raise ModelError(
            f"there is a CUDA device, but ONNX Runtime cannot use it: {error}; is the extra 'gpu' "
            "installed? ESVIT_DEVICE=cpu does without"
        ) from error
    return True


def _count_cuda_devices() -> int:
    """Ask the CUDA driver how many devices there are; 0 without a driver."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return 0
    count = ctypes.c_int(0)
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return 0
    return count.value


class OnnxRuntimeEngine:
    """The model file in ONNX Runtime; see `service.engine.Engine`."""

    name = "onnxruntime"
    patience_s = 0.0

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
        provider = "CUDAExecutionProvider" if self._on_cuda else "CPUExecutionProvider"
        self._session = _session(path, provider, num_threads=1)
        self.provider = self._session.get_providers()[0]
        if self.provider != provider:
            raise ModelError(f"asked for {provider}, but ONNX Runtime chose {self.provider}")
        self._alone = self._session
        if not self._on_cuda and num_threads > 1:
            self._alone = _session(path, provider, num_threads=num_threads)
        self.num_runners = 1 if self._on_cuda else num_threads
        self.max_batch = max_batch or (CUDA_MAX_BATCH if self._on_cuda else 1)
        self._lock = threading.Lock()
        self._running = 0

    def run(
        self, pixels: NDArray[np.uint8], outputs: Sequence[Output]
    ) -> dict[Output, NDArray[np.float32]]:
        """Give the asked outputs for (B, H, W, 3) pixels."""
        if self._on_cuda:
            return self._run_bound(pixels, outputs)
        with self._lock:
            self._running += 1
            session = self._alone if self._running == 1 else self._session
        try:
            arrays = session.run(list(outputs), {INPUT: pixels})
        finally:
            with self._lock:
                self._running -= 1
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


def _session(path: Path, provider: str, *, num_threads: int) -> onnxruntime.InferenceSession:
    """Make a session; memory is given back as tightly as ONNX Runtime allows."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    # Between runs a spinning worker would take the cores from decoding and from the other session.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_device_allocator_for_initializers", "1")
    try:
        return onnxruntime.InferenceSession(path, options, providers=[provider])
    except Exception as error:  # ONNX Runtime raises a class of its own for every kind of damage
        raise ModelError(f"ONNX Runtime cannot load {path}: {error}") from error

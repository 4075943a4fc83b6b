"""OpenVINO: the fast engine on CPUs, in bfloat16 where that is faster and faithful.

Tapping the last blocks costs a run a tenth, the other outputs nothing (`benchmarks.outputs`). So
all outputs together are a program of their own, compiled when it is first asked for. The others
have two: a stream for each thread for throughput, and one stream of all threads for a lone image,
which it answers in half the time.
"""

import os
import threading
import weakref
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from queue import SimpleQueue

import numpy as np
import openvino
from numpy.typing import NDArray

from service.contract import INPUT, OUTPUTS, Output
from service.errors import ModelError

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""Our names of precisions to OpenVINO's."""

MAX_BATCH = 4

PLAIN_OUTPUTS: tuple[Output, ...] = ("embedding", "regions", "attention")

PATIENCE_S = 0.008
"""Less than merging two runs into one saves: one image takes 31 ms on a stream, four take 103."""


@cache
def core() -> openvino.Core:
    """Give the one core of this process, which is never let go.

    Each core gives the thread that makes it a stack for signals, and gives back the one before when
    it ends. Where cores end in another order, or in another thread, that stack is gone, and the
    next signal, such as SIGHUP or SIGTERM, kills the process.
    """
    return openvino.Core()


def supported_precisions() -> list[str]:
    """Give the precisions that this CPU computes in faster than by emulation."""
    capabilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    names = {"FP32": "fp32", "BF16": "bf16", "FP16": "fp16"}
    return [names[capability] for capability in capabilities if capability in names]


Requests = SimpleQueue[openvino.InferRequest]
"""The idle requests of a program."""


class OpenVinoEngine:
    """The model file in OpenVINO; see `service.engine.Engine`.

    Attributes:
        shapes: Of each output for one image as the file declares it, for those that are fixed.
    """

    name = "openvino"
    patience_s = PATIENCE_S
    uses_cpu = True
    compiled: Sequence[Output] = PLAIN_OUTPUTS
    shapes: dict[Output, tuple[int, ...]]

    def __init__(self, path: Path, *, precision: str, num_threads: int, max_batch: int) -> None:
        """Load and compile the file.

        Args:
            path: The model file.
            precision: "fp32", "bf16" or "fp16".
            num_threads: Threads to use: a runner and a stream each, all on one for a lone image.
            max_batch: Images a run; 0 takes what is best.

        Raises:
            ModelError: if OpenVINO cannot load it.
        """
        self._path = path
        try:
            self._file = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise ModelError(f"{path} cannot be read: {error.strerror}") from error
        weakref.finalize(self, os.close, self._file)
        self._written_at_ns = os.fstat(self._file).st_mtime_ns
        self._options = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": num_threads,
        }
        self.provider = core().get_property("CPU", "FULL_DEVICE_NAME")
        self.precision = precision
        self.num_runners = num_threads
        self.max_batch = max_batch or MAX_BATCH
        self._alone = self._compile(PLAIN_OUTPUTS, 1)
        self._plain = self._compile(PLAIN_OUTPUTS, num_threads) if num_threads > 1 else self._alone
        self._lock = threading.Lock()

    def run(
        self, pixels: NDArray[np.uint8], outputs: Sequence[Output], *, is_alone: bool = False
    ) -> dict[Output, NDArray[np.float32]]:
        """Give the asked outputs for (B, H, W, 3) pixels."""
        if set(outputs) <= set(PLAIN_OUTPUTS):
            requests = self._alone if is_alone else self._plain
        else:
            with self._lock:  # the first to ask compiles for all
                requests = self._full
        request = requests.get()
        try:
            request.infer({INPUT: pixels}, share_inputs=True, share_outputs=True)
            return {name: request.get_tensor(name).data.copy() for name in outputs}
        finally:
            requests.put(request)

    @cached_property
    def _full(self) -> Requests:
        """The program of all outputs."""
        return self._compile(OUTPUTS, self.num_runners)

    def _compile(self, outputs: Sequence[Output], num_streams: int) -> Requests:
        """Compile the part of the graph that leads to some outputs; a request for each stream."""
        if os.fstat(self._file).st_mtime_ns != self._written_at_ns:
            raise ModelError(f"{self._path} was written over; replace model files by renaming")
        # The file that was opened, also when another has taken its name.
        own = Path(f"/proc/self/fd/{self._file}")
        requests: Requests = SimpleQueue()
        try:
            graph = core().read_model(own if own.exists() else self._path)
            self.shapes = _shapes(graph)
            part = openvino.Model([graph.output(name) for name in outputs], graph.get_parameters())
            program = core().compile_model(
                part, "CPU", self._options | {"NUM_STREAMS": num_streams}
            )
            for _ in range(num_streams):
                requests.put(program.create_infer_request())
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot load {self._path}: {error}") from error
        return requests


def _shapes(graph: openvino.Model) -> dict[Output, tuple[int, ...]]:
    """Give the shape of each output for one image, as far as a graph declares it."""
    declared = {name: list(graph.output(name).partial_shape)[1:] for name in OUTPUTS}
    return {
        name: tuple(size.get_length() for size in sizes)
        for name, sizes in declared.items()
        if all(size.is_static for size in sizes)
    }

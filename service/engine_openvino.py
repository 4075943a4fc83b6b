"""OpenVINO: the fast engine on CPUs, in bfloat16 on those that have it.

Tapping the last blocks costs a run a tenth, the other outputs nothing (`benchmarks.outputs`). So
there are two programs: one without them, and one with all, compiled when they are first asked for.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from service.contract import INPUT, OUTPUTS, Output
from service.errors import ModelError

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""Our names of precisions to OpenVINO's."""

MAX_BATCH = 8

PLAIN_OUTPUTS: tuple[Output, ...] = ("embedding", "regions", "attention")

PATIENCE_S = 0.008
"""What a run costs however few its images are: 23 ms for one, 123 ms for eight."""


def supported_precisions() -> list[str]:
    """Give the precisions that this CPU computes in faster than by emulation."""
    capabilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    names = {"FP32": "fp32", "BF16": "bf16", "FP16": "fp16"}
    return [names[capability] for capability in capabilities if capability in names]


class OpenVinoEngine:
    """The model file in OpenVINO; see `service.engine.Engine`."""

    name = "openvino"
    num_runners = 1
    patience_s = PATIENCE_S

    def __init__(self, path: Path, *, precision: str, num_threads: int, max_batch: int) -> None:
        """Load and compile the file.

        Args:
            path: The model file.
            precision: "fp32", "bf16" or "fp16".
            num_threads: Threads to use, all on one run: a single image is answered fastest so, and
                eight together nearly as fast as by a stream for each thread.
            max_batch: Images a run; 0 takes what is best.

        Raises:
            ModelError: if OpenVINO cannot load it.
        """
        core = openvino.Core()
        self._path = path
        self._options = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": num_threads,
            "NUM_STREAMS": 1,
        }
        self.provider = core.get_property("CPU", "FULL_DEVICE_NAME")
        self.precision = precision
        self.max_batch = max_batch or MAX_BATCH
        self._plain = self._compile(PLAIN_OUTPUTS)

    def run(
        self, pixels: NDArray[np.uint8], outputs: Sequence[Output], *, is_alone: bool = False
    ) -> dict[Output, NDArray[np.float32]]:
        """Give the asked outputs for (B, H, W, 3) pixels; by one thread at a time."""
        request = self._plain if set(outputs) <= set(PLAIN_OUTPUTS) else self._full
        request.infer({INPUT: pixels}, share_inputs=True, share_outputs=True)
        return {name: request.get_tensor(name).data.copy() for name in outputs}

    @cached_property
    def _full(self) -> openvino.InferRequest:
        """The program of all outputs."""
        return self._compile(OUTPUTS)

    def _compile(self, outputs: Sequence[Output]) -> openvino.InferRequest:
        """Compile the part of the graph that leads to some outputs."""
        core = openvino.Core()
        try:
            graph = core.read_model(self._path)
            part = openvino.Model([graph.output(name) for name in outputs], graph.get_parameters())
            return core.compile_model(part, "CPU", self._options).create_infer_request()
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot load {self._path}: {error}") from error

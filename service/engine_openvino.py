"""OpenVINO: the fast engine on CPUs, in bfloat16 on those that have it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import openvino
from numpy.typing import NDArray

from service.contract import INPUT, Output
from service.errors import ModelError

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
"""Our names of precisions to OpenVINO's."""

MAX_BATCH = 8

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
        options = {
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            "INFERENCE_NUM_THREADS": num_threads,
            "NUM_STREAMS": 1,
        }
        try:
            compiled = core.compile_model(core.read_model(path), "CPU", options)
        except RuntimeError as error:
            raise ModelError(f"OpenVINO cannot load {path}: {error}") from error
        self.provider = core.get_property("CPU", "FULL_DEVICE_NAME")
        self.precision = precision
        self.max_batch = max_batch or MAX_BATCH
        self._request = compiled.create_infer_request()

    def run(
        self, pixels: NDArray[np.uint8], outputs: Sequence[Output]
    ) -> dict[Output, NDArray[np.float32]]:
        """Give the asked outputs for (B, H, W, 3) pixels; by one thread at a time."""
        self._request.infer({INPUT: pixels}, share_inputs=True, share_outputs=True)
        return {name: self._request.get_tensor(name).data.copy() for name in outputs}

"""The service before a simulated GPU: a batch of n images takes 3 + 0.15 n ms and no CPU."""

import time
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from service.__main__ import serve
from service.app import create_app
from service.contract import OUTPUTS, ModelInfo, Output
from service.model_file import read_model_info
from service.settings import Settings


class SimulatedGpu:
    """Takes its time and gives zeros."""

    name = "simulated"
    provider = "simulated"
    precision = "fp32"
    num_runners = 1
    max_batch = 32
    patience_s = 0.0
    uses_cpu = False
    compiled: Sequence[Output] = OUTPUTS

    def __init__(self, info: ModelInfo) -> None:
        """Take the shapes of the outputs from a model file."""
        self._shapes = info.outputs

    def run(
        self, pixels: NDArray[np.uint8], outputs: Sequence[Output], *, is_alone: bool = False
    ) -> dict[Output, NDArray[np.float32]]:
        """Wait as a GPU would, without the processor."""
        time.sleep(0.003 + 0.00015 * len(pixels))
        return {
            name: np.full((len(pixels), *self._shapes[name]), 0.123456, np.float32)
            for name in outputs
        }


def main() -> None:
    """Serve."""
    settings = Settings()
    serve(create_app(settings, SimulatedGpu(read_model_info(settings.model))), settings)


if __name__ == "__main__":
    main()

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from service import cuda
from service.contract import OUTPUTS
from service.engine_onnxruntime import OnnxRuntimeEngine
from service.errors import ModelError
from service.parity import photograph_pixels
from tests.service import oracles
from tests.service.tiny_model import SPEC, constants

PIXELS = photograph_pixels(SPEC)


@pytest.fixture
def engine(model_path) -> OnnxRuntimeEngine:
    return make(model_path)


def make(model_path, device: str = "cpu") -> OnnxRuntimeEngine:
    return OnnxRuntimeEngine(
        model_path, device=device, precision="fp32", num_threads=2, max_batch=0
    )


def test_first_and_later_runs_in_any_order_and_at_once_give_the_same(engine):
    expected = [oracles.tiny_model(pixels, constants()) for pixels in PIXELS]

    def run(number: int) -> None:
        count, outputs = 1 + number % len(PIXELS), OUTPUTS[number % len(OUTPUTS) :]
        arrays = engine.run(PIXELS[:count], outputs, is_alone=number % 5 == 0)
        assert list(arrays) == list(outputs)
        for name, array in arrays.items():
            for row in range(count):
                np.testing.assert_allclose(array[row], expected[row][name], atol=2e-5)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(run, range(120)))


class Recorder:
    """A session that notes whether memory is given back after a run."""

    def __init__(self) -> None:
        self.gives_back = []

    def run(self, outputs, feeds, options):
        entry = "memory.enable_memory_arena_shrinkage"
        self.gives_back.append(options is not None and options.get_run_config_entry(entry))
        return [np.zeros(len(feeds["pixels"])) for _ in outputs]


def test_memory_is_given_back_after_the_run_that_lays_it_out_and_after_no_other(engine):
    engine._session, engine._alone = Recorder(), Recorder()
    for count in (1, 1, 2, 1, 2):
        engine.run(PIXELS[:count], ["embedding"])
    for _ in range(2):
        engine.run(PIXELS[:1], ["embedding"], is_alone=True)
    assert engine._session.gives_back == ["cpu:0", False, "cpu:0", False, False]
    assert engine._alone.gives_back == ["cpu:0", False]


def test_an_engine_that_failed_once_runs_again(engine):
    for _ in range(3):
        with pytest.raises(Exception, match="dimensions"):
            engine.run(np.zeros((1, 5, 5, 3), np.uint8), OUTPUTS)
    assert engine.run(PIXELS, ["embedding"])["embedding"].shape == (len(PIXELS), 12)


@pytest.mark.skipif(cuda.count_devices() > 0, reason="here ONNX Runtime does have CUDA")
def test_a_device_that_onnx_runtime_cannot_use_is_refused_with_the_way_out(model_path):
    with pytest.raises(ModelError, match="is the extra 'gpu' installed"):
        make(model_path, "cuda")


@pytest.mark.gpu
def test_cuda_gives_the_same_as_the_cpu(model_path):
    assert cuda.count_devices()
    on_gpu = make(model_path, "cuda")
    assert on_gpu.provider == "CUDAExecutionProvider"
    reference = make(model_path).run(PIXELS, OUTPUTS)
    for name, array in on_gpu.run(PIXELS, OUTPUTS).items():
        np.testing.assert_allclose(array, reference[name], atol=1e-3)

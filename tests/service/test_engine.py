import ctypes
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
import pytest

from service import cuda, engine_onnxruntime, engine_openvino
from service import engine as choice
from service.app import create_app
from service.contract import METADATA_KEY, OUTPUTS
from service.engine import load_engine, warm_up
from service.engine_onnxruntime import OnnxRuntimeEngine
from service.engine_openvino import OpenVinoEngine, supported_precisions
from service.errors import ModelError
from service.metrics import Metrics
from service.model_file import read_model_info
from service.parity import least_cosines, photograph_pixels
from service.pipeline import load_pipeline
from service.settings import Settings
from tests.service import oracles
from tests.service.calls import post_form, post_raw
from tests.service.pictures import png, scene
from tests.service.server import serve
from tests.service.tiny_model import INFO, SPEC, constants, write_tiny_model

PIXELS = photograph_pixels(SPEC)


def load(model_path, **changes):
    settings = Settings(model=model_path, **({"threads": 2, "device": "cpu"} | changes))
    return load_engine(settings, read_model_info(model_path))


def refusal(model_path, **changes) -> str:
    with pytest.raises(ModelError) as caught:
        load(model_path, **changes)
    return str(caught.value)


ENGINES = [
    {"engine": "onnxruntime"},
    {"engine": "onnxruntime", "threads": 1},
    {"engine": "openvino", "precision": "fp32"},
]


@pytest.mark.parametrize("settings", ENGINES)
def test_an_engine_gives_the_models_outputs(model_path, settings):
    arrays = load(model_path, **settings).run(PIXELS, OUTPUTS)
    for row, pixels in enumerate(PIXELS):
        for name, values in oracles.tiny_model(pixels, constants()).items():
            np.testing.assert_allclose(arrays[name][row], values, atol=2e-5)


@pytest.mark.parametrize("settings", ENGINES)
@pytest.mark.parametrize("outputs", [["regions"], ["attention", "embedding"]])
def test_an_engine_gives_what_is_asked_for_as_float32(model_path, settings, outputs):
    arrays = load(model_path, **settings).run(PIXELS[:2], outputs)
    assert list(arrays) == outputs
    for name, array in arrays.items():
        assert array.dtype == np.float32
        assert array.shape == (2, *INFO.outputs[name])


@pytest.mark.parametrize("settings", ENGINES)
def test_a_batch_equals_its_images_alone_and_results_outlive_the_next_run(model_path, settings):
    engine = load(model_path, **settings)
    batch = engine.run(PIXELS, OUTPUTS)
    kept = {name: array.copy() for name, array in batch.items()}
    alone = [engine.run(pixels[None], OUTPUTS) for pixels in PIXELS]
    for name in OUTPUTS:
        np.testing.assert_array_equal(batch[name], kept[name])
        for row, arrays in enumerate(alone):
            np.testing.assert_allclose(arrays[name][0], batch[name][row], atol=1e-5)


@pytest.mark.parametrize("precision", supported_precisions())
def test_openvino_runs_in_every_precision_that_this_cpu_has(model_path, precision):
    engine = load(model_path, engine="openvino", precision=precision)
    assert engine.precision == precision
    reference = load(model_path, engine="onnxruntime").run(PIXELS, OUTPUTS)
    assert min(least_cosines(engine.run(PIXELS, OUTPUTS), reference).values()) > 0.99


def test_openvino_and_onnx_runtime_agree(model_path):
    arrays = [load(model_path, **settings).run(PIXELS, OUTPUTS) for settings in ENGINES]
    for name in OUTPUTS:
        np.testing.assert_allclose(arrays[2][name], arrays[0][name], atol=1e-5)


# What is chosen.


def test_an_engine_says_what_it_is(model_path):
    onnxruntime = load(model_path, engine="onnxruntime")
    assert (onnxruntime.name, onnxruntime.precision) == ("onnxruntime", "fp32")
    assert onnxruntime.provider == "CPUExecutionProvider"
    assert (onnxruntime.num_runners, onnxruntime.max_batch) == (2, 1)
    openvino = load(model_path, engine="openvino", precision="fp32")
    assert (openvino.name, openvino.precision) == ("openvino", "fp32")
    assert (openvino.num_runners, openvino.max_batch) == (2, 4)
    assert openvino.provider


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_max_batch_is_a_setting(model_path, engine):
    assert load(model_path, engine=engine, max_batch=5).max_batch == 5


def test_auto_takes_openvino_on_a_cpu(model_path):
    assert load(model_path).name == "openvino"


def test_auto_without_a_cuda_device_takes_the_cpu(model_path, monkeypatch):
    monkeypatch.setattr(cuda, "count_devices", lambda: 0)
    assert load(model_path, device="auto", engine="auto").name == "openvino"
    assert load(model_path, device="auto", engine="onnxruntime").name == "onnxruntime"
    assert load(model_path, device="auto", engine="openvino").name == "openvino"


def test_auto_with_a_cuda_device_asks_onnx_runtime_for_it(model_path, monkeypatch):
    monkeypatch.setattr(cuda, "count_devices", lambda: 1)
    made = lambda path, *, device, **_: Fake(device)  # noqa: E731  # one line says it all
    monkeypatch.setattr(engine_onnxruntime, "OnnxRuntimeEngine", made)
    assert load(model_path, device="auto").name == "cuda"
    assert load(model_path, device="cuda").name == "cuda"
    assert load(model_path, device="cpu", engine="onnxruntime").name == "cpu"
    assert load(model_path, device="auto", engine="openvino").name == "openvino"


def test_cuda_that_is_asked_for_and_not_there_is_refused(model_path, monkeypatch):
    monkeypatch.setattr(cuda, "count_devices", lambda: 0)
    assert "the driver shows no CUDA device" in refusal(model_path, device="cuda")


def test_cuda_with_openvino_is_refused(model_path):
    assert "wants onnxruntime" in refusal(model_path, device="cuda", engine="openvino")


class Driver:
    """A CUDA driver of so many devices, or one that does not start."""

    def __init__(self, devices: int, status: int = 0) -> None:
        self.devices, self.status = devices, status

    def cuInit(self, flags: int) -> int:  # noqa: N802  # the driver's own name
        return self.status

    def cuDeviceGetCount(self, count) -> int:  # noqa: N802  # the driver's own name
        count._obj.value = self.devices
        return 0


@pytest.mark.parametrize("driver", [Driver(0), Driver(1, status=100)])
def test_a_driver_without_a_device_is_no_cuda(monkeypatch, driver):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert cuda.count_devices() == 0


def test_no_driver_is_no_cuda(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert cuda.count_devices() == 0


def test_a_driver_tells_how_many_devices_there_are(monkeypatch):
    monkeypatch.setattr(ctypes, "CDLL", lambda name: Driver(2))
    assert cuda.count_devices() == 2


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_onnx_runtime_refuses_another_precision_than_the_files(model_path, precision):
    assert "the model file is fp32" in refusal(
        model_path, engine="onnxruntime", precision=precision
    )


def test_openvino_refuses_a_precision_that_the_cpu_lacks(model_path, monkeypatch):
    monkeypatch.setattr(engine_openvino, "supported_precisions", lambda: ["fp32"])
    message = refusal(model_path, engine="openvino", precision="bf16")
    assert message == "ESVIT_PRECISION=bf16, but this CPU has only ['fp32']"


def test_on_a_cpu_without_bf16_auto_is_fp32(model_path, monkeypatch):
    monkeypatch.setattr(engine_openvino, "supported_precisions", lambda: ["fp32"])
    assert load(model_path, engine="openvino").precision == "fp32"


class Fake:
    """An engine of one precision that gives the tiny model's outputs, with an error in one."""

    max_batch, num_runners, patience_s, provider, uses_cpu = 1, 1, 0.0, "fake", True
    compiled = OUTPUTS

    def __init__(self, name: str, precision: str = "fp32", error: float = 0.0) -> None:
        self.name, self.precision, self.error = name, precision, {"regions": error}

    def run(
        self, pixels: np.ndarray, outputs: Sequence[str], *, is_alone: bool = False
    ) -> dict[str, np.ndarray]:
        rows = [oracles.tiny_model(picture, constants()) for picture in pixels]
        return {
            name: np.float32([row[name] + self.error.get(name, 0) for row in rows])
            for name in outputs
        }


@pytest.mark.parametrize(
    ("error", "seconds", "chosen"),
    [(1e-4, 0.02, "bf16"), (1e-4, 0.04, "fp32"), (0.3, 0.02, "fp32"), (np.nan, 0.02, "fp32")],
)
def test_auto_takes_bf16_only_if_it_is_faithful_and_faster(
    model_path, monkeypatch, caplog, error, seconds, chosen
):
    is_faithful = error == 1e-4
    clock = [0.0]

    class Timed(Fake):
        def run(self, *args, **kwargs):
            clock[0] += seconds if self.precision == "bf16" else 0.03
            return super().run(*args, **kwargs)

    def openvino(settings, info, precision):
        return Timed("fake", precision, error if precision == "bf16" else 0.0)

    monkeypatch.setattr(engine_openvino, "supported_precisions", lambda: ["fp32", "bf16"])
    monkeypatch.setattr(choice, "_openvino", openvino)
    monkeypatch.setattr(choice, "perf_counter", lambda: clock[0])
    caplog.set_level(logging.INFO, logger="service.engine")
    assert load(model_path, engine="openvino").precision == chosen
    first, *others, last = (record.getMessage() for record in caplog.records)
    assert first.startswith("bf16: cosines to fp32 of embedding ")
    assert first.endswith("it is faithful" if is_faithful else "not all 0.999, so fp32 is used")
    assert last.endswith(f"fake, fake, {chosen}")
    timed = f"bf16: an image takes {1e3 * seconds:.1f} ms, in fp32 30.0 ms: {chosen} is used"
    assert others == ([timed] if is_faithful else [])


def test_bf16_that_is_asked_for_is_not_questioned(model_path, monkeypatch):
    monkeypatch.setattr(engine_openvino, "supported_precisions", lambda: ["fp32", "bf16"])
    monkeypatch.setattr(choice, "_openvino", lambda *_: Fake("fake", "bf16", np.nan))
    assert load(model_path, engine="openvino", precision="bf16").precision == "bf16"


# What is refused.


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_file_that_is_no_model_behind_its_passport_is_refused(tmp_path, engine):
    path = tmp_path / "empty.onnx"
    model = onnx.ModelProto(ir_version=8)  # no graph
    onnx.helper.set_model_props(model, {METADATA_KEY: INFO.to_json()})
    path.write_bytes(model.SerializeToString())
    assert read_model_info(path) == INFO
    settings = Settings(model=path, engine=engine, device="cpu", threads=1)
    with pytest.raises(ModelError, match="cannot load"):
        load_engine(settings, INFO)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("crop", [24, 36])
def test_a_model_of_another_size_than_its_passport_says_is_refused(tmp_path, engine, crop):
    passport = INFO.to_json().replace('"crop": 32', f'"crop": {crop}')
    path = write_tiny_model(tmp_path / "model.onnx", passport)
    with pytest.raises(ModelError, match="the model does not run on"):
        create_app(Settings(model=path, engine=engine, device="cpu", threads=1))


def test_a_model_of_other_outputs_than_its_passport_says_is_refused(tmp_path):
    passport = INFO.to_json().replace('"embedding": [12]', '"embedding": [13]')
    path = write_tiny_model(tmp_path / "model.onnx", passport)
    with pytest.raises(ModelError, match=r"gives embedding \(12,\), its passport says \(13,\)"):
        create_app(Settings(model=path, engine="onnxruntime", device="cpu", threads=1))


@pytest.mark.parametrize("options", [{"engine": "onnxruntime"}, {"engine": "openvino"}])
@pytest.mark.parametrize("precision", ["auto", "fp32"])
def test_an_output_that_is_seldom_asked_for_is_looked_at_too(tmp_path, options, precision):
    passport = replace(INFO, outputs=INFO.outputs | {"last_blocks": (49,)}).to_json()
    settings = Settings(
        model=write_tiny_model(tmp_path / "model.onnx", passport), precision=precision, **options
    )
    with pytest.raises(ModelError, match=r"gives last_blocks .*, its passport says \(49,\)"):
        load_pipeline(settings, Metrics())


def test_an_engine_that_keeps_the_passport_warms_up():
    warm_up(Fake("fake"), INFO)


@pytest.mark.parametrize("output", OUTPUTS)
def test_any_output_that_breaks_the_passport_is_refused(output):
    info = replace(INFO, outputs=INFO.outputs | {output: (16, 99)})
    with pytest.raises(ModelError, match=rf"gives {output} \(.*, its passport says \(16, 99\)"):
        warm_up(Fake("fake"), info)


# Through the service.


def test_openvino_serves_the_same_as_onnx_runtime(client, model_path):
    settings = Settings(model=model_path, engine="openvino", precision="fp32", threads=2)
    with serve(create_app(settings)) as openvino:
        assert openvino.get("/info").json()["engine"] == "openvino"
        images = [png(scene(60, 50, seed)) for seed in range(20)]
        vectors, expected = (
            post_form(server, "/embed", images).json()["embeddings"]
            for server in (openvino, client)
        )
        np.testing.assert_allclose(vectors, expected, atol=1e-5)
        alone = post_raw(openvino, "/embed", images[7]).json()["embeddings"]
        np.testing.assert_allclose(alone[0], vectors[7], atol=1e-5)


ENGINES_AND_A_SIGNAL = """
import os, signal, sys
from pathlib import Path
from service.engine_openvino import OpenVinoEngine

signal.signal(signal.SIGHUP, lambda *_: print("heard"))
options = {"precision": "fp32", "num_threads": 2, "max_batch": 0}
first, second = (OpenVinoEngine(Path(sys.argv[1]), **options) for _ in range(2))
del first
del second
os.kill(os.getpid(), signal.SIGHUP)
"""


def test_engines_let_go_leave_signals_a_stack(model_path):
    command = [sys.executable, "-c", ENGINES_AND_A_SIGNAL, str(model_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr


def test_the_engines_are_what_the_contract_calls_them():
    assert (OnnxRuntimeEngine.name, OpenVinoEngine.name) == ("onnxruntime", "openvino")

"""Engines behind one small contract, and the choice among them.

An engine runs the model file: uint8 pixels in, named float32 arrays out. Which one is fastest is
known (README, "Speed"): OpenVINO on CPUs, ONNX Runtime on CUDA. Whether bfloat16 is faithful, and
faster than full precision, is asked of real photographs each time a model is loaded: there are CPUs
that have its instructions and are slower with them.

Each library costs some 40 MB, so only the chosen one is imported.
"""

import logging
from collections.abc import Sequence
from time import perf_counter
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from service import cuda
from service.contract import OUTPUTS, ModelInfo, Output
from service.errors import ModelError
from service.parity import MIN_COSINE, least_cosines, photograph_pixels
from service.settings import Settings

logger = logging.getLogger(__name__)

TIMED_S = 0.5
"""How long precisions are timed in turn: less than their programs take to compile."""


class Engine(Protocol):
    """What runs a model file.

    Attributes:
        name: The library, "onnxruntime" or "openvino".
        provider: What it runs on, in the library's own words.
        precision: The arithmetic really in use.
        num_runners: How many threads should call `run` at once.
        max_batch: How many images a call should have at most.
        patience_s: How long a runner should wait for images that are just being decoded.
        uses_cpu: Whether it computes on the cores that decode.
        compiled: The outputs that a run gives without anything being compiled first.
    """

    name: str
    provider: str
    precision: str
    num_runners: int
    max_batch: int
    patience_s: float
    uses_cpu: bool
    compiled: Sequence[Output]

    def run(
        self, pixels: NDArray[np.uint8], outputs: Sequence[Output], *, is_alone: bool = False
    ) -> dict[Output, NDArray[np.float32]]:
        """Give the asked outputs for (B, H, W, 3) pixels, called by `num_runners` threads.

        Args:
            pixels: The images.
            outputs: What is asked for.
            is_alone: No other image is on its way, so all cores may work on this one.
        """


def load_engine(settings: Settings, info: ModelInfo) -> Engine:
    """Load the model file into the engine that the settings ask for, or the best there is.

    Raises:
        ModelError: if the file cannot be used or what was asked for is not there.
    """
    device = _choose_device(settings)
    if settings.engine == "openvino" or (settings.engine == "auto" and device == "cpu"):
        engine = _load_openvino(settings, info)
    else:
        engine = _load_onnxruntime(settings, info, device)
    logger.info("model %s on %s, %s, %s", info.name, engine.name, engine.provider, engine.precision)
    return engine


def warm_up(engine: Engine, info: ModelInfo) -> None:
    """Run a photograph through an engine and hold what comes out against the model's passport.

    Args:
        engine: What runs the model; it is asked for what it has compiled.
        info: The model's passport.

    Raises:
        ModelError: if the engine cannot run the model, or gives other shapes than the passport or
            numbers that are not finite.
    """
    for name, array in _run_once(engine, info, engine.compiled).items():
        if not np.isfinite(array).all():
            raise ModelError(f"the model gives {name} with NaN or infinite numbers")


def _run_once(
    engine: Engine, info: ModelInfo, outputs: Sequence[Output]
) -> dict[Output, NDArray[np.float32]]:
    """Run a photograph through an engine; its outputs have the passport's shapes."""
    try:
        arrays = engine.run(photograph_pixels(info.preprocess)[:1], outputs)
    except Exception as error:  # each engine raises classes of its own
        raise ModelError(f"the model does not run on {engine.name}: {error}") from error
    for name in outputs:
        _check_shape(info, name, arrays[name].shape[1:])
    return arrays


def _check_shape(info: ModelInfo, name: Output, given: tuple[int, ...]) -> None:
    """Hold an output's shape for one image against the passport.

    Raises:
        ModelError: if it is another.
    """
    promised = info.outputs[name]
    if given != promised:
        raise ModelError(
            f"the model gives {name} {given}, its passport says {promised}; "
            "export it again with trainer.export_onnx"
        )


def _choose_device(settings: Settings) -> Literal["cuda", "cpu"]:
    """Give the device to use; CUDA that was asked for and is not there is an error."""
    if settings.device == "cuda":
        if settings.engine == "openvino":
            raise ModelError("OpenVINO serves CPUs here; ESVIT_DEVICE=cuda wants onnxruntime")
        if not cuda.count_devices():
            raise ModelError(
                "ESVIT_DEVICE=cuda, but the driver shows no CUDA device: is there a GPU, is it "
                "passed into the container? ESVIT_DEVICE=auto falls back to the CPU"
            )
        return "cuda"
    if settings.device == "auto" and settings.engine != "openvino" and cuda.count_devices():
        return "cuda"
    return "cpu"


def _load_onnxruntime(
    settings: Settings, info: ModelInfo, device: Literal["cuda", "cpu"]
) -> Engine:
    """Load into ONNX Runtime, which computes in the precision of the file."""
    if settings.precision not in ("auto", info.precision):
        raise ModelError(
            f"ESVIT_PRECISION={settings.precision}, but the model file is {info.precision} and "
            "ONNX Runtime computes as the file says; trainer.export_onnx --precision writes others"
        )
    from service.engine_onnxruntime import OnnxRuntimeEngine

    return OnnxRuntimeEngine(
        settings.model,
        device=device,
        precision=info.precision,
        num_threads=settings.num_threads,
        max_batch=settings.max_batch,
    )


def _load_openvino(settings: Settings, info: ModelInfo) -> Engine:
    """Load into OpenVINO at the asked precision, or the fastest that is faithful."""
    from service.engine_openvino import supported_precisions

    supported = supported_precisions()
    if settings.precision != "auto":
        if settings.precision not in supported:
            raise ModelError(
                f"ESVIT_PRECISION={settings.precision}, but this CPU has only {supported}"
            )
        return _openvino(settings, info, settings.precision)
    if "bf16" not in supported:
        return _openvino(settings, info, "fp32")
    # Asked of engines that are thrown away: the served one compiles only what it is asked for.
    bf16, fp32 = (_openvino(settings, info, precision) for precision in ("bf16", "fp32"))
    _run_once(bf16, info, OUTPUTS)
    is_best = _is_faithful(bf16, fp32, info) and _is_faster(bf16, fp32, info)
    del bf16, fp32
    return _openvino(settings, info, "bf16" if is_best else "fp32")


def _openvino(settings: Settings, info: ModelInfo, precision: str) -> Engine:
    """Load into OpenVINO at one precision; what is compiled later has the passport's shapes too."""
    from service.engine_openvino import OpenVinoEngine

    engine = OpenVinoEngine(
        settings.model,
        precision=precision,
        num_threads=settings.num_threads,
        max_batch=settings.max_batch,
    )
    for name, shape in engine.shapes.items():
        _check_shape(info, name, shape)
    return engine


def _is_faithful(bf16: Engine, fp32: Engine, info: ModelInfo) -> bool:
    """Hold all outputs on real photographs against full precision."""
    pixels = photograph_pixels(info.preprocess)
    cosines = least_cosines(bf16.run(pixels, OUTPUTS), fp32.run(pixels, OUTPUTS))
    shown = ", ".join(f"{name} {cosine:.5f}" for name, cosine in cosines.items())
    faithful = min(cosines.values()) >= MIN_COSINE
    verdict = "it is faithful" if faithful else f"not all {MIN_COSINE:g}, so fp32 is used"
    logger.info("bf16: cosines to fp32 of %s: %s", shown, verdict)
    return faithful


def _is_faster(bf16: Engine, fp32: Engine, info: ModelInfo) -> bool:
    """Time a lone image on both in turn; the fastest of each, for a busy machine only adds time."""
    pixels = photograph_pixels(info.preprocess)[:1]
    seconds: dict[str, list[float]] = {engine.precision: [] for engine in (bf16, fp32)}
    begun = perf_counter()
    while len(seconds["fp32"]) < 2 or perf_counter() - begun < TIMED_S:  # the first run is slower
        for engine in (bf16, fp32):
            started = perf_counter()
            engine.run(pixels, engine.compiled, is_alone=True)
            seconds[engine.precision].append(perf_counter() - started)
    reduced, full = min(seconds["bf16"]), min(seconds["fp32"])
    logger.info(
        "bf16: an image takes %.1f ms, in fp32 %.1f ms: %s is used",
        1e3 * reduced, 1e3 * full, "bf16" if reduced < full else "fp32",
    )  # fmt: skip
    return reduced < full

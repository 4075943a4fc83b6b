"""What asking for more outputs costs a run of the engine.

    python -m benchmarks.outputs --model models/swin_tiny_w7.onnx

Cuts the model file down to the named outputs and times one run of each part in turn, several
rounds: median milliseconds, and the ratio to the part that gives the embedding alone. `fetched`
is the whole file, asked for the embedding only.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import numpy as np
import onnxruntime
import openvino

from service import engine_openvino
from service.contract import INPUT, OUTPUTS

PARTS = {
    "embedding": ("embedding",),
    "+ regions": ("embedding", "regions"),
    "+ attention": ("embedding", "regions", "attention"),
    "all four": OUTPUTS,
}
Call = Callable[[], object]


def openvino_parts(model: str, batch: int) -> dict[str, Call]:
    """Give a call for each part, in bfloat16 on two threads."""
    core = engine_openvino.core()
    graph = core.read_model(model)
    side = graph.input(INPUT).partial_shape[1].get_length()
    pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)
    options = {"INFERENCE_PRECISION_HINT": "bf16", "INFERENCE_NUM_THREADS": 2, "NUM_STREAMS": 1}

    def call_of(outputs: tuple[str, ...]) -> Call:
        whole = core.read_model(model)
        part = openvino.Model([whole.output(name) for name in outputs], whole.get_parameters())
        request = core.compile_model(part, "CPU", options).create_infer_request()
        return lambda: request.infer({INPUT: pixels}, share_inputs=True, share_outputs=True)

    return {name: call_of(outputs) for name, outputs in PARTS.items()}


def onnxruntime_parts(model: str, batch: int) -> dict[str, Call]:
    """Give a call for each way to ask, in float32 on two threads."""
    import onnx

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    whole = onnx.load(model)
    side = whole.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    pixels = np.random.default_rng(0).integers(0, 256, (batch, side, side, 3), np.uint8)

    def call_of(outputs: tuple[str, ...], fetched: tuple[str, ...]) -> Call:
        part = onnx.utils.Extractor(whole).extract_model([INPUT], list(outputs))
        data = part.SerializeToString()
        session = onnxruntime.InferenceSession(data, options, ["CPUExecutionProvider"])
        return lambda: session.run(list(fetched), {INPUT: pixels})

    calls = {name: call_of(outputs, outputs) for name, outputs in PARTS.items()}
    return calls | {"fetched": call_of(OUTPUTS, ("embedding",))}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    for engine, parts_of in (("openvino bf16", openvino_parts), ("onnxruntime", onnxruntime_parts)):
        for batch in (1, 8):
            calls = parts_of(arguments.model, batch)
            times: dict[str, list[float]] = {name: [] for name in calls}
            for _ in range(arguments.rounds + 1):
                for name, call in calls.items():
                    started = time.perf_counter()
                    call()
                    times[name].append(time.perf_counter() - started)
            base = median(times["embedding"][1:])
            for name, spent in times.items():
                typical = median(spent[1:])
                print(
                    f"{engine}, batch {batch}, {name:12s} "
                    f"{1e3 * typical:7.1f} ms {typical / base:5.2f}"
                )


if __name__ == "__main__":
    main()

"""The Open Inference Protocol v2, as KServe and Triton speak it.

One model with one input, image files, and its results as named outputs, any of them in one call:
the four of the model file and, of one or two pictures, the matches between them. JSON or binary
tensors either way. https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol
"""

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import anyio.to_thread
import numpy as np
from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from starlette.exceptions import HTTPException

from service import VERSION
from service.answers import match_table
from service.contract import OUTPUTS, ModelInfo, Output
from service.encoding import normalize, to_json
from service.errors import Draining, InvalidRequest
from service.inputs import read_body
from service.pipeline import Pipeline
from service.protocols.tensors import INPUT, InferCall, read_call
from service.schemas import CorrespondOptions
from service.tickets import Inferred

router = APIRouter(prefix="/v2", include_in_schema=False)

HEADER_LENGTH = "inference-header-content-length"

NAMES: dict[str, Output] = {name.upper(): name for name in OUTPUTS}
"""Outputs of the model file by their names here."""

MATCHES = "MATCHES"
"""Rows of query, source x, y, target x, y, score, mutual, as `/correspond` gives them in base64."""

MATCH_COLUMNS = 7

NORMALIZED = frozenset(("embedding", "regions", "last_blocks"))
"""Outputs that are vectors, and unit vectors unless asked otherwise."""

MODEL_VERSION = "1"


class Tensor(NamedTuple):
    """One output of an answer, and whether it goes binary."""

    name: str
    array: NDArray[np.float32]
    is_binary: bool


@router.get("")
async def server_metadata() -> Response:
    """Name the server."""
    content = {"name": "esvit", "version": VERSION, "extensions": ["binary_tensor_data"]}
    return _json(content)


@router.get("/health/live")
async def live() -> Response:
    """Say that the event loop turns."""
    return Response()


@router.get("/health/ready")
async def ready(request: Request) -> Response:
    """Say whether calls are answered."""
    if _pipeline(request).is_draining:
        raise Draining("the service is shutting down")
    return Response()


@router.get("/models/{model}/ready")
@router.get("/models/{model}/versions/{version}/ready")
async def model_ready(request: Request, model: str, version: str = MODEL_VERSION) -> Response:
    """Say whether calls of the model are answered."""
    _check_model(_pipeline(request), model, version)
    return await ready(request)


@router.get("/models/{model}")
@router.get("/models/{model}/versions/{version}")
async def model_metadata(request: Request, model: str, version: str = MODEL_VERSION) -> Response:
    """Describe the model's input and outputs."""
    pipeline = _pipeline(request)
    _check_model(pipeline, model, version)
    shapes = {name: [-1, *pipeline.info.outputs[NAMES[name]]] for name in _given(pipeline.info)}
    shapes[MATCHES] = [-1, MATCH_COLUMNS]
    content = {
        "name": model,
        "versions": [MODEL_VERSION],
        "platform": f"{pipeline.engine.name}_onnx",
        "inputs": [
            {
                "name": INPUT,
                "datatype": "BYTES",
                "shape": [-1],
                "parameters": {"content": "image files; in JSON, base64"},
            }
        ],
        "outputs": [
            {"name": name, "datatype": "FP32", "shape": shape} for name, shape in shapes.items()
        ],
    }
    return _json(content)


@router.post("/repository/index")
async def repository_index(request: Request) -> Response:
    """List the one model."""
    name = _pipeline(request).info.name
    return _json([{"name": name, "version": MODEL_VERSION, "state": "READY", "reason": ""}])


@router.post("/models/{model}/infer")
@router.post("/models/{model}/versions/{version}/infer")
async def infer(request: Request, model: str, version: str = MODEL_VERSION) -> Response:
    """Answer the outputs that are asked for, for every image; one bad image fails the call."""
    pipeline = _pipeline(request)
    _check_model(pipeline, model, version)
    body = await read_body(request)
    call = read_call(body, request.headers.get(HEADER_LENGTH), pipeline.settings.max_images)
    wanted = call.outputs or dict.fromkeys(_given(pipeline.info), call.is_binary)
    needed = _needed(wanted, call, pipeline.info)
    numbers = sum(math.prod(pipeline.info.outputs[output]) for output in needed)
    request.state.expect(len(call.images) * numbers)
    results = await pipeline.infer(call.images, needed, call.fit)
    items = [item for item in pipeline.settle(results, must_succeed=True).items if item]
    started = time.perf_counter()
    answer = await anyio.to_thread.run_sync(_answer, pipeline.info, call, wanted, items)
    pipeline.metrics.encode_seconds.observe(time.perf_counter() - started)
    return answer


def error(status: int, detail: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Give a refusal in this protocol's shape: 400 where ours says 422."""
    where = f"image {detail['index']}: " if "index" in detail else ""
    where = f"{detail['field']}: " if "field" in detail else where
    return 400 if status == 422 else status, {"error": f"{where}{detail['message']}"}


def _pipeline(request: Request) -> Pipeline:
    """Give the pipeline that this call keeps."""
    pipeline: Pipeline = request.state.pipeline
    return pipeline


def _check_model(pipeline: Pipeline, model: str, version: str) -> None:
    """Refuse models and versions that are not served."""
    if model != pipeline.info.name:
        raise HTTPException(404, f"no such model; served is {pipeline.info.name}")
    if version != MODEL_VERSION:
        raise HTTPException(404, f"no such version; served is {MODEL_VERSION}")


def _given(info: ModelInfo) -> list[str]:
    """Name the outputs that the model really has: attention is empty in some architectures."""
    return [name for name, output in NAMES.items() if math.prod(info.outputs[output])]


def _needed(wanted: Mapping[str, bool], call: InferCall, info: ModelInfo) -> list[Output]:
    """Give what the engine must compute.

    Raises:
        InvalidRequest: if an output is unknown, or matches are wanted of three pictures or more.
    """
    known = [*_given(info), MATCHES]
    for name in wanted:
        if name not in known:
            raise InvalidRequest(f"unknown output; known are {', '.join(known)}", field="outputs")
    if MATCHES in wanted and len(call.images) > 2:
        raise InvalidRequest(f"{MATCHES} are those of one picture or two", field="outputs")
    needed = {NAMES[name] for name in wanted if name != MATCHES}
    if MATCHES in wanted:
        needed.add("regions")
    return [output for output in OUTPUTS if output in needed]


def _answer(
    info: ModelInfo, call: InferCall, wanted: Mapping[str, bool], items: list[Inferred]
) -> Response:
    """Write the answer: a JSON header, then the binary tensors in the order of the outputs."""
    tensors = [
        Tensor(name, _array(info, name, call, items), is_binary)
        for name, is_binary in wanted.items()
    ]
    content = {
        "model_name": info.name,
        "model_version": MODEL_VERSION,
        **({"id": call.id} if call.id else {}),
        "outputs": [_describe(tensor) for tensor in tensors],
    }
    header = to_json(content)
    raw = [np.ascontiguousarray(t.array, "<f4").tobytes() for t in tensors if t.is_binary]
    if not raw:
        return Response(header, media_type="application/json")
    return Response(
        b"".join((header, *raw)),
        media_type="application/octet-stream",
        headers={HEADER_LENGTH: str(len(header))},
    )


def _describe(tensor: Tensor) -> dict[str, Any]:
    """Describe one output in the header, with its numbers if they are not binary."""
    described = {"name": tensor.name, "datatype": "FP32", "shape": tensor.array.shape}
    if tensor.is_binary:
        return described | {"parameters": {"binary_data_size": 4 * tensor.array.size}}
    return described | {"data": np.ascontiguousarray(tensor.array).reshape(-1)}


def _array(
    info: ModelInfo, name: str, call: InferCall, items: list[Inferred]
) -> NDArray[np.float32]:
    """Give one output: an array an image, or the matches from the first to the last."""
    if name == MATCHES:
        pair = (items[0], items[-1])
        options = CorrespondOptions.model_validate({})
        return match_table(info, pair, options).astype(np.float32)
    output = NAMES[name]
    stacked = np.stack([item.arrays[output] for item in items])
    return normalize(stacked) if call.normalize and output in NORMALIZED else stacked


def _json(content: Any) -> Response:  # Any: whatever orjson can write
    """Write a JSON answer."""
    return Response(to_json(content), media_type="application/json")

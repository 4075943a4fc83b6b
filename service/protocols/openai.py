"""`POST /v1/embeddings` in OpenAI's shape, with pictures as Jina, Infinity and Weaviate send them.

Clients put names of models and options of their own into every call: any model name is accepted,
the answer says which model it was, and options that mean nothing here are ignored.
"""

import time
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, Field

from service.addresses import Source
from service.encoding import encode_array, normalize, to_json
from service.errors import InvalidRequest
from service.inputs import read_body, read_object, read_options
from service.pipeline import Pipeline
from service.protocols.pictures import read_pictures

router = APIRouter(prefix="/v1", include_in_schema=False)

ERROR_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class EmbeddingsOptions(BaseModel):
    """What is understood of a call."""

    input: Any = None  # Any: `read_pictures` looks at it, item by item
    encoding_format: Literal["float", "base64"] = Field(
        "float",
        validation_alias=AliasChoices("encoding_format", "embedding_type", "encoding_type"),
    )
    dimensions: int | None = Field(None, ge=1)


@router.post("/embeddings")
async def embeddings(request: Request) -> Response:
    """Give one L2-normalised vector a picture; one bad picture fails the call."""
    pipeline: Pipeline = request.state.pipeline
    options = read_options(EmbeddingsOptions, read_object(await read_body(request)))
    items = options.input if isinstance(options.input, list) else [options.input]
    pictures = read_pictures(items, "input", pipeline.settings.max_images)
    vectors = await embed(pipeline, pictures, options.dimensions)
    started = time.perf_counter()
    data = [
        {
            "object": "embedding",
            "index": index,
            "embedding": encode_array(vector, options.encoding_format),
        }
        for index, vector in enumerate(vectors)
    ]
    content = {
        "object": "list",
        "model": pipeline.info.name,
        "data": data,
        "usage": {"prompt_tokens": 0, "total_tokens": 0},
    }
    body = to_json(content)
    pipeline.metrics.encode_seconds.observe(time.perf_counter() - started)
    return Response(body, media_type="application/json")


@router.get("/models")
async def models(request: Request) -> Response:
    """List the one model."""
    pipeline: Pipeline = request.state.pipeline
    model = {"id": pipeline.info.name, "object": "model", "created": 0, "owned_by": "esvit"}
    return Response(to_json({"object": "list", "data": [model]}), media_type="application/json")


async def embed(
    pipeline: Pipeline, pictures: list[Source], dimensions: int | None
) -> list[NDArray[Any]]:
    """Give one L2-normalised float32 vector (C,) a picture, or its first so many dimensions.

    Raises:
        ServiceError: if a picture is bad, or there are not so many dimensions.
    """
    dim = pipeline.info.dim
    if dimensions is not None and dimensions > dim:
        raise InvalidRequest(f"embeddings have {dim} dimensions", field="dimensions", limit=dim)
    results = await pipeline.infer(pictures, ["embedding"], "crop")
    batch = pipeline.settle(results, must_succeed=True)
    units = [item.unit["embedding"] for item in batch.items if item]
    return units if dimensions is None else [normalize(unit[:dimensions]) for unit in units]


def error(status: int, detail: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Give a refusal in OpenAI's shape, 400 where ours says 422; `detail` is what Jina's shows."""
    param = f"input[{detail['index']}]" if "index" in detail else detail.get("field")
    kind = "invalid_request_error" if status < 500 else "server_error"
    described = {
        "message": detail["message"],
        "type": ERROR_TYPES.get(status, kind),
        "param": param,
        "code": detail["code"],
    }
    where = f"{param}: " if param else ""
    content = {"error": described, "detail": f"{where}{detail['message']}"}
    return 400 if status == 422 else status, content

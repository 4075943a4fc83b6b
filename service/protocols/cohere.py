"""`POST /v2/embed` in Cohere's shape, for pictures.

Any model name is accepted: clients insist on Cohere's own. Options that mean nothing here
(`input_type`, `truncate`) are ignored.
"""

import time
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from service.encoding import encode_array, to_json
from service.errors import InvalidRequest
from service.inputs import read_body, read_object, read_options
from service.pipeline import Pipeline
from service.protocols.openai import embed
from service.protocols.pictures import read_pictures

router = APIRouter(prefix="/v2", include_in_schema=False)


class EmbedOptions(BaseModel):
    """What is understood of a call."""

    images: list[Any] | None = None  # Any, here and below: `read_pictures` looks at each item
    inputs: list[Any] | None = None
    texts: Any = None
    embedding_types: list[Literal["float", "base64"]] = Field(
        ["float"], min_length=1, max_length=2, fail_fast=True
    )
    output_dimension: int | None = Field(None, ge=1)


@router.post("/embed")
async def embed_pictures(request: Request) -> Response:
    """Give one L2-normalised vector a picture, in each form asked for; a bad one fails the call."""
    pipeline: Pipeline = request.state.pipeline
    options = read_options(EmbedOptions, read_object(await read_body(request)))
    field, items = _pictures(options)
    pictures = read_pictures(items, field, pipeline.settings.max_images)
    vectors = await embed(pipeline, pictures, options.output_dimension)
    started = time.perf_counter()
    content = {
        "id": request.state.request_id,
        "embeddings": {
            form: [encode_array(vector, form) for vector in vectors]
            for form in options.embedding_types
        },
        "texts": [],
        "meta": {"api_version": {"version": "2"}, "billed_units": {"images": len(pictures)}},
        "response_type": "embeddings_by_type",
    }
    body = to_json(content)
    pipeline.metrics.encode_seconds.observe(time.perf_counter() - started)
    return Response(body, media_type="application/json")


def error(status: int, detail: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
    """Give a refusal in Cohere's shape."""
    where = f"images[{detail['index']}]: " if "index" in detail else ""
    where = f"{detail['field']}: " if "field" in detail else where
    return status, {"id": detail["request_id"], "message": f"{where}{detail['message']}"}


def _pictures(options: EmbedOptions) -> tuple[str, list[Any]]:
    """Give the list of pictures and its name: `images`, or `inputs` of one content each."""
    if options.texts:
        raise InvalidRequest("this model embeds pictures only, no texts", field="texts")
    if (options.images is None) == (options.inputs is None):
        raise InvalidRequest("expected either images or inputs", field="images")
    if options.images is not None:
        return "images", options.images
    assert options.inputs is not None
    return "inputs", [_content(item) for item in options.inputs]


def _content(item: object) -> object:
    """Give the one picture of an input; what is not one is left for `read_pictures` to refuse."""
    content = item.get("content") if isinstance(item, dict) else None
    return content[0] if isinstance(content, list) and len(content) == 1 else content

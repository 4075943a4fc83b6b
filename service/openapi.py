"""What the OpenAPI document says of endpoints that read their bodies themselves."""

from typing import Any, TypedDict

from pydantic import BaseModel

from service.schemas import ErrorAnswer

Schema = dict[str, Any]


class Description(TypedDict):
    """Arguments of a route."""

    responses: dict[int | str, dict[str, Any]]
    openapi_extra: Schema


ERROR_MEANINGS = {
    400: "the body is not what its content type says",
    408: "the body took too long",
    413: "too many bytes, pixels or images",
    415: "a content type or image format that is not accepted",
    422: "understood, but not acceptable",
    429: "too much is under way; try again after Retry-After",
    503: "shutting down, or the answer would have come too late",
}

BINARY: Schema = {"schema": {"type": "string", "format": "binary"}}


def describe(
    body: type[BaseModel],
    answer: type[BaseModel],
    *,
    names: tuple[str, ...] = (),
    png: bool = False,
) -> Description:
    """Describe an endpoint: its three forms of input, its answer, its errors.

    Args:
        body: The JSON body: the images' fields and the options.
        answer: The JSON answer.
        names: Form parts that hold one image each; empty means any number called `file`.
        png: Whether the answer may be a drawing.
    """
    schema = body.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    options = {
        name: field
        for name, field in schema["properties"].items()
        if name not in ("images", *names)
    }
    files: Schema = dict.fromkeys(names, BINARY["schema"]) or {
        "file": {"type": "array", "items": BINARY["schema"]}
    }
    form: Schema = {"type": "object", "properties": files | options, "required": [*files]}
    content: Schema = {
        "image/jpeg": BINARY,
        "image/png": BINARY,
        "image/webp": BINARY,
        "multipart/form-data": {"schema": form},
        "application/json": {"schema": schema},
    }
    parameters = [
        {"name": name, "in": "query", "required": False, "schema": field}
        for name, field in options.items()
    ]
    answers: Schema = {"application/x-npy": BINARY} | ({"image/png": BINARY} if png else {})
    errors: dict[int | str, dict[str, Any]] = {
        status: {"model": ErrorAnswer, "description": meaning}
        for status, meaning in ERROR_MEANINGS.items()
    }
    return {
        "responses": {200: {"model": answer, "content": answers}, **errors},
        "openapi_extra": {
            "requestBody": {"required": True, "content": content},
            "parameters": parameters,
        },
    }

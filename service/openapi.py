"""What the OpenAPI document says of endpoints that read their bodies themselves."""

from typing import Any, TypedDict

from fastapi import FastAPI
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

NOT_THERE = {404: "no gallery here, or no such picture in it"}

KEYS: Schema = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
}
"""The two ways to bring a key (`service.keys`)."""

BINARY: Schema = {"schema": {"type": "string", "format": "binary"}}


def describe(
    body: type[BaseModel],
    answer: type[BaseModel],
    *,
    names: tuple[str, ...] = (),
    png: bool = False,
    in_gallery: bool = False,
) -> Description:
    """Describe an endpoint: its three forms of input, its answer, its errors.

    Args:
        body: The JSON body: the images' fields and the options.
        answer: The JSON answer.
        names: Form parts that hold one image each; empty means any number called `file`.
        png: Whether the answer may be a drawing.
        in_gallery: Whether it is one of the gallery's: it may not be there, and gives no `.npy`.
    """
    schema = _schema(body)
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
    answers: Schema = {} if in_gallery else {"application/x-npy": BINARY}
    answers |= {"image/png": BINARY} if png else {}
    meanings = ERROR_MEANINGS | (NOT_THERE if in_gallery else {})
    return {
        "responses": {200: {"model": answer, "content": answers}, **_errors(meanings)},
        "openapi_extra": {
            "requestBody": {"required": True, "content": content},
            "parameters": _parameters(options),
        },
    }


def describe_fields(body: type[BaseModel], answer: type[BaseModel]) -> Description:
    """Describe an endpoint of the gallery that takes a JSON object and no image."""
    content = {"application/json": {"schema": _schema(body)}}
    return {
        "responses": {200: {"model": answer}, **_errors(NOT_THERE | ERROR_MEANINGS)},
        "openapi_extra": {"requestBody": {"required": False, "content": content}},
    }


def describe_query(options: type[BaseModel], answer: type[BaseModel] | None) -> Description:
    """Describe an endpoint of the gallery that is only read; without a model it is a JPEG.

    Args:
        options: What the query takes, of a JPEG what the path does.
        answer: The JSON answer.
    """
    good: Schema = {"content": {"image/jpeg": BINARY}} if answer is None else {"model": answer}
    meanings = NOT_THERE | {status: ERROR_MEANINGS[status] for status in (422, 503)}
    parameters = _parameters(_schema(options)["properties"], in_path=answer is None)
    return {
        "responses": {200: good, **_errors(meanings)},
        "openapi_extra": {"parameters": parameters},
    }


def ask_for_keys(app: FastAPI) -> None:
    """Say in an application's document that its calls want a key."""
    make = app.openapi

    def document() -> Schema:
        made = make()
        made["components"]["securitySchemes"] = KEYS
        made["security"] = [{name: []} for name in KEYS]
        return made

    app.openapi = document  # type: ignore[method-assign]  # as FastAPI's documentation has it


def _schema(model: type[BaseModel]) -> Schema:
    """Give a model's JSON schema, without what it refers to."""
    schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
    schema.pop("$defs", None)
    return schema


def _parameters(options: Schema, *, in_path: bool = False) -> list[Schema]:
    """Give options as they stand in a query, or in the path."""
    where = "path" if in_path else "query"
    return [
        {"name": name, "in": where, "required": in_path, "schema": field}
        for name, field in options.items()
    ]


def _errors(meanings: dict[int, str]) -> dict[int | str, dict[str, Any]]:
    """Give the refusals of an endpoint."""
    return {
        status: {"model": ErrorAnswer, "description": meaning}
        for status, meaning in meanings.items()
    }

"""What each endpoint takes and gives: options are validated by these, answers documented by them.

Feature arrays are never passed through a response model; `encoding.to_json` writes them.
"""

from datetime import datetime
from typing import Annotated, Any, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from service.attention import Head, Render
from service.encoding import Encoding
from service.preprocess import Fit

Vector = list[float] | str
"""JSON floats, or base64 of little-endian floats."""


def _read_json(value: object) -> object:
    """Read a value that came as text, in a query or a form field, as the JSON it holds."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value  # for pydantic to refuse, in its own words


Coordinate = Annotated[float, Field(allow_inf_nan=False)]
Point = tuple[Coordinate, Coordinate]

Points = Annotated[list[Point], Field(fail_fast=True), BeforeValidator(_read_json)]
"""Points; the first bad one ends the reading, else millions would become a gigabyte of errors."""


class Options(BaseModel):
    """What every endpoint understands: JSON fields, form fields or query parameters."""

    model_config = ConfigDict(extra="forbid")

    fit: Fit = Field(
        "crop",
        description="what the model sees: the picture's centre (`crop`, the published evaluation), "
        "the whole picture with a border (`pad`), or squeezed to a square (`stretch`)",
    )
    encoding_format: Encoding = Field(
        "float",
        description="arrays as JSON numbers, or base64 of little-endian float32 (`base64`) or "
        "float16 (`base64_f16`); with `Accept: application/x-npy` the answer is one `.npy` file",
    )


class BatchOptions(Options):
    """What every endpoint of several images understands."""

    on_error: Literal["null", "fail"] = Field(
        "null",
        description="of several images one is bad: answer the others and null for it, or fail",
    )


class EmbedOptions(BatchOptions):
    """Options of `POST /embed`."""

    output: Literal["embedding", "last_blocks"] = Field(
        "embedding", description="the model's embedding, or pooled features of the last four blocks"
    )
    normalize: bool = Field(
        True, description="divide by the L2 norm, so that a dot product is a cosine"
    )
    dimensions: int | None = Field(None, ge=1, description="keep only the first so many numbers")


class RegionsOptions(BatchOptions):
    """Options of `POST /regions`."""

    normalize: bool = Field(True, description="divide each region's features by their L2 norm")


class CorrespondOptions(Options):
    """Options of `POST /correspond`."""

    points: Points | None = Field(
        None,
        description="points x, y of the source in pixels to find in the target; null: all regions",
    )
    top_k: int | None = Field(None, ge=1, description="only the so many highest scores, best first")
    mutual_only: bool = Field(
        False, description="only matches that lead back to where they came from"
    )
    min_score: float | None = Field(
        None,
        ge=-1.0,
        le=1.0,
        allow_inf_nan=False,
        description="only matches of at least this cosine",
    )
    subcell: bool = Field(False, description="refine positions to fractions of a region")


class AttentionOptions(BatchOptions):
    """Options of `POST /attention`."""

    head: Annotated[Head, BeforeValidator(_read_json)] = Field(
        "mean", description="number of a head from 0, or `mean` or `all` of them"
    )
    query: Annotated[Point | Literal["all"], BeforeValidator(_read_json)] | None = Field(
        None,
        description="point x, y in source pixels that asks, or `all` regions one by one; null: "
        "pooled, as the embedding is",
    )
    render: Render = Field(
        "none", description="draw a PNG: a `heatmap` alone, or as `overlay` on the picture"
    )


class ImageSource(BaseModel):
    """One image in a JSON body: exactly one of the three."""

    model_config = ConfigDict(extra="forbid")

    base64: str | None = Field(
        None, description="the file's bytes", json_schema_extra={"format": "image-base64"}
    )
    data_uri: str | None = Field(None, description="`data:image/jpeg;base64,...`")
    url: str | None = Field(None, description="an address, where the service is set to fetch")


class EmbedBody(EmbedOptions):
    """JSON body of `POST /embed`."""

    images: list[ImageSource]


class RegionsBody(RegionsOptions):
    """JSON body of `POST /regions`."""

    images: list[ImageSource]


class CorrespondBody(CorrespondOptions):
    """JSON body of `POST /correspond`."""

    source: ImageSource
    target: ImageSource


class AttentionBody(AttentionOptions):
    """JSON body of `POST /attention`."""

    images: list[ImageSource]


class ErrorDetail(BaseModel):
    """What was wrong."""

    code: str
    message: str
    field: str | None = None
    index: int | None = None
    limit: int | None = None
    request_id: str | None = None


class ErrorAnswer(BaseModel):
    """Every refusal."""

    error: ErrorDetail


class Answer(BaseModel):
    """What every answer says of itself."""

    model: str
    dim: int


class ImageAnswer(BaseModel):
    """What every image's part of an answer says of it."""

    index: int
    width: int
    height: int


class EmbedAnswer(Answer):
    """Answer of `POST /embed`: a vector an image, null where it failed."""

    embeddings: list[Vector | None]
    errors: list[ErrorDetail]


class RegionsOfImage(ImageAnswer):
    """One image's regions, row by row."""

    regions: list[Vector] | str
    boxes: list[tuple[float, float, float, float]]


class RegionsAnswer(Answer):
    """Answer of `POST /regions`; boxes are left, top, right, bottom in source pixels."""

    grid: tuple[int, int]
    images: list[RegionsOfImage | None]
    errors: list[ErrorDetail]


class Match(BaseModel):
    """A pair of points, x, y in pixels of either picture."""

    query: int
    source: Point
    target: Point
    score: float
    mutual: bool


class PictureSize(BaseModel):
    """Width and height of an upright picture in pixels."""

    width: int
    height: int


class CorrespondAnswer(Answer):
    """Answer of `POST /correspond`; as base64, rows of query, x, y, x, y, score, mutual."""

    grid: tuple[int, int]
    source: PictureSize
    target: PictureSize
    matches: list[Match] | str


class AttentionOfImage(ImageAnswer):
    """One image's maps, (heads, rows, columns), or its drawing.

    With all queries (heads, queries, rows, columns).
    """

    attention: list[list[list[float]]] | list[list[list[list[float]]]] | str | None = None
    png: str | None = None


class AttentionAnswer(Answer):
    """Answer of `POST /attention`."""

    grid: tuple[int, int]
    num_heads: int
    images: list[AttentionOfImage | None]
    errors: list[ErrorDetail]


class InfoAnswer(Answer):
    """Answer of `GET /info`."""

    arch: str
    training: dict[str, Any] | None
    licence: str
    weights_sha256: str
    whitening: dict[str, Any] | None
    outputs: dict[str, list[int]]
    grid: tuple[int, int]
    preprocess: dict[str, Any]
    engine: str
    provider: str
    precision: str
    gallery: bool
    limits: dict[str, Any]
    version: str
    loaded_at: datetime
    reload_failed_at: datetime | None = Field(
        description="when a new model file was last refused, if the one served is older"
    )

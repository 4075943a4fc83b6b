"""What the gallery's endpoints take and give."""

from typing import Annotated, Literal

import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from service.inputs import MAX_FILE_NAME
from service.preprocess import Fit
from service.schemas import Answer, Coordinate, ErrorDetail, ImageSource, PictureSize

MAX_IDS = 1000
"""Pictures named in one call."""

PAGE = 100
"""Pictures of a page unless asked otherwise."""


def _read_json(value: object) -> object:
    """Read a list that came as text, in a query or a form field."""
    if not isinstance(value, str):
        return value
    try:
        return orjson.loads(value)
    except orjson.JSONDecodeError:
        return value  # for pydantic to refuse, in its own words


Id = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{8}-([0-9a-f]{4}-){3}[0-9a-f]{12}$")]
Name = Annotated[str, StringConstraints(max_length=MAX_FILE_NAME)]
Names = Annotated[list[Name], Field(fail_fast=True), BeforeValidator(_read_json)]
Ids = Annotated[list[Id], Field(max_length=MAX_IDS, fail_fast=True)]
BoxInPixels = Annotated[
    tuple[Coordinate, Coordinate, Coordinate, Coordinate], BeforeValidator(_read_json)
]
Cosine = Annotated[float, Field(ge=-1.0, le=1.0, allow_inf_nan=False)]


class GalleryOptions(BaseModel):
    """What nothing else is allowed beside."""

    model_config = ConfigDict(extra="forbid")


class IndexOptions(GalleryOptions):
    """Options of `POST /gallery/index`."""

    fit: Fit = Field(
        "stretch", description="what the model sees of the pictures; the whole of them by default"
    )
    on_error: Literal["null", "fail"] = Field(
        "null", description="of several images one is bad: keep the others, or none"
    )
    names: Names | None = Field(
        None,
        description="what the pictures are called, as many as there are pictures; without, the "
        "names of a form's files",
    )


class LookOptions(GalleryOptions):
    """What every search understands."""

    limit: int = Field(20, ge=1, description="so many pictures at most, best first")
    min_score: Cosine | None = Field(
        None, description="only pictures of at least this cosine; not with a box"
    )
    box: BoxInPixels | None = Field(
        None,
        description="left, top, right, bottom in pixels of the query's picture: search for what "
        "is in there, wherever it is in others",
    )


class SearchOptions(LookOptions):
    """Options of `POST /gallery/search`."""

    fit: Fit = Field(
        "stretch", description="what the model sees of the query: best the same as of the pictures"
    )


class SimilarOptions(LookOptions):
    """JSON body of `POST /gallery/similar`."""

    id: Id = Field(description="a picture of the gallery")


class DuplicatesOptions(GalleryOptions):
    """JSON body of `POST /gallery/duplicates`."""

    min_score: Cosine = Field(0.95, description="pictures of at least this cosine are near")
    start: Id | None = Field(None, description="`next` of the answer before; null: the beginning")
    limit: int = Field(PAGE, ge=1, le=1000, description="so many pictures are looked at")


class DeleteOptions(GalleryOptions):
    """JSON body of `POST /gallery/delete`: either of the two."""

    ids: Ids = Field([], description="pictures of the gallery")
    all: bool = Field(False, description="empty the gallery")


class PageOptions(GalleryOptions):
    """Options of `GET /gallery`."""

    start: Id | None = Field(None, description="`next` of the answer before; none: the beginning")
    limit: int = Field(PAGE, ge=0, le=1000, description="so many pictures at most")


class ThumbnailOptions(GalleryOptions):
    """Path of `GET /gallery/thumbnails/{id}`."""

    id: Id = Field(description="a picture of the gallery")


class IndexBody(IndexOptions):
    """JSON body of `POST /gallery/index`."""

    images: list[ImageSource]


class SearchBody(SearchOptions):
    """JSON body of `POST /gallery/search`."""

    images: list[ImageSource] = Field(min_length=1, max_length=1)


class PictureAnswer(PictureSize):
    """A picture of the gallery; `/gallery/thumbnails/{id}` shows it."""

    id: str
    name: str
    fit: Fit


class IndexedPicture(PictureAnswer):
    """What became of an image: `known` says that it was in the gallery before."""

    index: int
    known: bool


class IndexAnswer(Answer):
    """Answer of `POST /gallery/index`, null where an image failed."""

    images: list[IndexedPicture | None]
    errors: list[ErrorDetail]
    count: int


class FoundPicture(PictureAnswer):
    """A picture that was found. The last four are told of a search by box.

    There `score` is the sum of the mutual matches' cosines over the number of regions in the box.
    """

    score: float
    similarity: float | None = None
    mutual: int | None = None
    regions: int | None = None
    box: tuple[float, float, float, float] | None = None


class SearchAnswer(Answer):
    """Answer of `POST /gallery/search` and `/gallery/similar`, best first."""

    query: PictureSize
    results: list[FoundPicture]


class NearPictures(PictureAnswer):
    """A picture and those that are near it; of each pair one is told, under its smaller id."""

    near: list[FoundPicture]


class DuplicatesAnswer(Answer):
    """Answer of `POST /gallery/duplicates`; `next` is null at the end."""

    pictures: list[NearPictures]
    looked_at: int
    next: str | None


class DeleteAnswer(BaseModel):
    """Answer of `POST /gallery/delete`: how many were there, and how many are left."""

    deleted: int
    count: int


class PageAnswer(Answer):
    """Answer of `GET /gallery`; `next` is null at the end."""

    count: int
    pictures: list[PictureAnswer]
    next: str | None

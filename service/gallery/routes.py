"""The gallery's endpoints: index, search, near-duplicates, list, delete."""

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request, Response

from service.answers import POSITION_DECIMALS, SCORE_DECIMALS
from service.contract import ModelInfo
from service.encoding import to_json
from service.errors import GalleryOff, InvalidRequest
from service.gallery import schemas
from service.gallery.finder import PartFound
from service.gallery.gallery import Gallery
from service.gallery.intake import OUTPUTS, take_in
from service.gallery.store import Found, Picture
from service.inputs import read_fields, read_inputs, read_options
from service.openapi import describe, describe_fields, describe_query
from service.pipeline import Pipeline
from service.tickets import Inferred

router = APIRouter(prefix="/gallery", tags=["gallery"])

THUMBNAIL_HEADERS = {"cache-control": "private, max-age=31536000, immutable"}
"""Under one id there is only ever one picture."""


@router.post("/index", **describe(schemas.IndexBody, schemas.IndexAnswer, in_gallery=True))
async def index(request: Request) -> Response:
    """Put images into the gallery; what is answered outlasts a crash.

    An image that is there already is not computed again.
    """
    pipeline, gallery = _pipeline(request), _gallery(request)
    inputs = await read_inputs(request, max_images=pipeline.settings.max_images)
    options = read_options(schemas.IndexOptions, inputs.fields)
    if options.names is not None and len(options.names) != len(inputs.images):
        raise InvalidRequest(f"expected {len(inputs.images)} names", field="names")
    taken = await take_in(pipeline, gallery, inputs, options)
    images = [
        item and {"index": i, **_picture(item.picture), "known": item.is_known}
        for i, item in enumerate(taken.images)
    ]
    content = {"images": images, "errors": taken.errors, "count": await gallery.count()}
    return _json(pipeline.info, content)


@router.post("/search", **describe(schemas.SearchBody, schemas.SearchAnswer, in_gallery=True))
async def search(request: Request) -> Response:
    """Find the pictures that are most similar to an image, or that hold a part of it (`box`)."""
    pipeline, gallery = _pipeline(request), _gallery(request)
    inputs = await read_inputs(request, max_images=1)
    options = read_options(schemas.SearchOptions, inputs.fields)
    _check_look(options, pipeline)
    batch = pipeline.settle(
        await pipeline.infer(inputs.images, OUTPUTS, options.fit), must_succeed=True
    )
    (query,) = batch.items
    assert query is not None
    return await _look(pipeline, gallery, query, options)


@router.post("/similar", **describe_fields(schemas.SimilarOptions, schemas.SearchAnswer))
async def similar(request: Request) -> Response:
    """Find the pictures that are most similar to one of the gallery, or that hold a part of it."""
    pipeline, gallery = _pipeline(request), _gallery(request)
    options = read_options(schemas.SimilarOptions, await read_fields(request))
    _check_look(options, pipeline)
    query = await gallery.picture(options.id)
    return await _look(pipeline, gallery, query, options)


@router.post("/duplicates", **describe_fields(schemas.DuplicatesOptions, schemas.DuplicatesAnswer))
async def duplicates(request: Request) -> Response:
    """Look for near-duplicates of a page's pictures among all; `next` leads through the gallery."""
    pipeline, gallery = _pipeline(request), _gallery(request)
    options = read_options(schemas.DuplicatesOptions, await read_fields(request))
    near, looked_at, following = await gallery.near(options.start, options.limit, options.min_score)
    pictures = [_picture(item.picture) | {"near": _found(item.found)} for item in near]
    content = {"pictures": pictures, "looked_at": looked_at, "next": following}
    return _json(pipeline.info, content)


@router.post("/delete", **describe_fields(schemas.DeleteOptions, schemas.DeleteAnswer))
async def delete(request: Request) -> Response:
    """Forget pictures; ids that are not there are passed over."""
    gallery = _gallery(request)
    options = read_options(schemas.DeleteOptions, await read_fields(request))
    if bool(options.ids) == options.all:
        raise InvalidRequest("expected either ids or all", field="ids")
    ids = sorted(set(options.ids))
    deleted = await (gallery.clear() if options.all else gallery.delete(ids))
    content = {"deleted": deleted, "count": await gallery.count()}
    return Response(to_json(content), media_type="application/json")


@router.get("", **describe_query(schemas.PageOptions, schemas.PageAnswer))
async def page(request: Request) -> Response:
    """Say how many pictures there are, and list a page of them."""
    pipeline, gallery = _pipeline(request), _gallery(request)
    options = read_options(schemas.PageOptions, dict(request.query_params))
    pictures, following = await gallery.page(options.start, options.limit)
    content = {
        "count": await gallery.count(),
        "pictures": [_picture(picture) for picture in pictures],
        "next": following,
    }
    return _json(pipeline.info, content)


@router.get("/thumbnails/{id}", **describe_query(schemas.ThumbnailOptions, None))
async def thumbnail(request: Request) -> Response:
    """Give a small JPEG of a picture."""
    gallery = _gallery(request)
    options = read_options(schemas.ThumbnailOptions, dict(request.path_params))
    data = await gallery.thumbnail(options.id)
    return Response(data, media_type="image/jpeg", headers=THUMBNAIL_HEADERS)


def _pipeline(request: Request) -> Pipeline:
    """Give the pipeline that this call keeps."""
    pipeline: Pipeline = request.state.pipeline
    return pipeline


def _gallery(request: Request) -> Gallery:
    """Give the application's gallery.

    Raises:
        GalleryOff: if it has none.
    """
    gallery: Gallery | None = request.app.state.gallery
    if gallery is None:
        raise GalleryOff(
            "this service has no gallery; start it with ESVIT_GALLERY_PATH=FOLDER, or "
            "ESVIT_GALLERY_URL of a Qdrant server"
        )
    return gallery


def _check_look(options: schemas.LookOptions, pipeline: Pipeline) -> None:
    """Refuse what no search can do."""
    limit = pipeline.settings.max_top_k
    if options.limit > limit:
        raise InvalidRequest(f"expected 1 to {limit}", field="limit", limit=limit)
    if options.box is not None and options.min_score is not None:
        raise InvalidRequest("a search by box takes no min_score", field="min_score")


async def _look(
    pipeline: Pipeline, gallery: Gallery, query: Inferred | Picture, options: schemas.LookOptions
) -> Response:
    """Search and answer."""
    if options.box is None:
        results = _found(await gallery.search(query, options.limit, options.min_score))
    else:
        parts = await gallery.search_part(query, options.box, options.limit)
        results = [_part(item, parts.num_regions) for item in parts.found]
    picture = query.prepared.geometry if isinstance(query, Inferred) else query.about
    size = {"width": picture.width, "height": picture.height}
    return _json(pipeline.info, {"query": size, "results": results})


def _picture(picture: Picture) -> dict[str, Any]:
    """Give what every answer says of a picture."""
    name, width, height, fit, _ = picture.about
    return {"id": picture.id, "name": name, "width": width, "height": height, "fit": fit}


def _found(found: Sequence[Found]) -> list[dict[str, Any]]:
    """Give what a search found, with scores."""
    return [_picture(item.picture) | {"score": round(item.score, SCORE_DECIMALS)} for item in found]


def _part(item: PartFound, num_regions: int) -> dict[str, Any]:
    """Give what a search by box found, with where it is."""
    return _picture(item.picture) | {
        "score": round(item.match.score, SCORE_DECIMALS),
        "similarity": round(item.match.similarity, SCORE_DECIMALS),
        "mutual": item.match.num_mutual,
        "regions": num_regions,
        "box": [round(side, POSITION_DECIMALS) for side in item.match.box],
    }


def _json(info: ModelInfo, content: dict[str, Any]) -> Response:
    """Write an answer that names the model and its dimension."""
    body = to_json({"model": info.name, "dim": info.dim} | content)
    return Response(body, media_type="application/json")

"""What was inferred becomes the answer: JSON, `.npy` or PNG."""

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pybase64
from fastapi import Response
from numpy.typing import NDArray

from service import correspond
from service.attention import QueryCell, attention_maps, render_heatmap, render_overlay
from service.contract import ModelInfo
from service.encoding import Encoding, encode_array, normalize, to_json, to_npy
from service.errors import PointOutOfBounds
from service.pipeline import Batch
from service.regions import cells_to_source, is_visible, region_boxes, source_to_cells
from service.schemas import AttentionOptions, CorrespondOptions, EmbedOptions, RegionsOptions
from service.tickets import Inferred

NPY = "application/x-npy"

ERRORS_HEADER = "x-esvit-errors"
"""Where a `.npy` answer names its failed images, for which it has no room; their rows are NaN."""

POSITION_DECIMALS = 3
"""Digits after the point of positions in pixels."""


SCORE_DECIMALS = 6
"""Digits after the point of cosines: all that float32 holds."""


def embeddings(info: ModelInfo, batch: Batch, options: EmbedOptions, *, as_npy: bool) -> Response:
    """Answer `POST /embed`."""
    length = options.dimensions or info.outputs[options.output][0]

    def vector(item: Inferred) -> NDArray[np.float32]:
        if not options.normalize:
            return item.arrays[options.output][:length]
        unit = item.unit[options.output]
        return unit if options.dimensions is None else normalize(unit[:length])

    if as_npy:
        return _npy(info, batch, vector, (length,), options.encoding_format)
    encoded = [item and encode_array(vector(item), options.encoding_format) for item in batch.items]
    return _json(info, {"dim": length, "embeddings": encoded, "errors": batch.errors})


def regions(info: ModelInfo, batch: Batch, options: RegionsOptions, *, as_npy: bool) -> Response:
    """Answer `POST /regions`."""

    def features(item: Inferred) -> NDArray[np.float32]:
        values = item.arrays["regions"]
        return normalize(values) if options.normalize else values

    def answer(item: Inferred) -> dict[str, Any]:
        boxes = region_boxes(item.prepared.geometry, info.grid, info.preprocess.crop)
        encoded = encode_array(features(item), options.encoding_format)
        return {"regions": encoded, "boxes": boxes.round(POSITION_DECIMALS)}

    if as_npy:
        return _npy(info, batch, features, info.outputs["regions"], options.encoding_format)
    content = {"grid": info.grid, "images": _images(batch, answer), "errors": batch.errors}
    return _json(info, content)


def correspondences(
    info: ModelInfo, pair: tuple[Inferred, Inferred], options: CorrespondOptions, *, as_npy: bool
) -> Response:
    """Answer `POST /correspond`; a pair of one and the same compares a picture with itself.

    Raises:
        PointOutOfBounds: if a point lies outside what the model sees.
    """
    table = match_table(info, pair, options)
    if as_npy:
        data = to_npy(table, options.encoding_format)
        return Response(data, media_type=NPY, headers=_about_model(info))
    rows: Any = encode_array(table, options.encoding_format)
    if options.encoding_format == "float":
        rows = [_match_row(row) for row in table.tolist()]
    sizes = [_size(item) for item in pair]
    content = {"grid": info.grid, "source": sizes[0], "target": sizes[1], "matches": rows}
    return _json(info, content)


def match_table(
    info: ModelInfo, pair: tuple[Inferred, Inferred], options: CorrespondOptions
) -> NDArray[np.float64]:
    """Match two pictures: (N, 7) rows of query, source x, y, target x, y, score, mutual.

    Raises:
        PointOutOfBounds: if a point lies outside what the model sees.
    """
    matches = correspond.select(
        _match(info, pair, options),
        mutual_only=options.mutual_only,
        min_score=options.min_score,
        top_k=options.top_k,
    )
    source, target = (
        _on_picture(info, cells, item)
        for cells, item in zip((matches.source, matches.target), pair, strict=True)
    )
    return np.column_stack([matches.query, source, target, matches.score, matches.mutual])


def attention(
    info: ModelInfo, batch: Batch, options: AttentionOptions, *, as_npy: bool
) -> Response:
    """Answer `POST /attention` with numbers, or with drawings as base64 in JSON.

    Raises:
        PointOutOfBounds: if the query lies outside what the model sees of the only image, or of
            one when one bad image shall fail the request.
    """
    batch = _with_query(info, batch, options)

    def maps(item: Inferred) -> NDArray[np.float32]:
        return _maps(info, item, options)

    def answer(item: Inferred) -> dict[str, Any]:
        if options.render == "none":
            return {"attention": encode_array(maps(item), options.encoding_format)}
        return {"png": pybase64.b64encode_as_string(_draw(info, item, options))}

    num_heads = info.outputs["attention"][0]
    if as_npy:
        shape = attention_shape(info, options)
        return _npy(info, batch, maps, shape, options.encoding_format)
    images = _images(batch, answer)
    content = {"grid": info.grid, "num_heads": num_heads, "images": images, "errors": batch.errors}
    return _json(info, content)


def attention_shape(info: ModelInfo, options: AttentionOptions) -> tuple[int, ...]:
    """Give the shape of one image's maps: (heads, [queries,] rows, columns)."""
    num_heads = info.outputs["attention"][0] if options.head == "all" else 1
    queries = (math.prod(info.grid),) if options.query == "all" else ()
    return (num_heads, *queries, *info.grid)


def drawing(info: ModelInfo, item: Inferred, options: AttentionOptions) -> Response:
    """Answer `POST /attention` with the drawing of one image.

    Raises:
        PointOutOfBounds: if the query lies outside what the model sees.
    """
    return Response(_draw(info, item, options), media_type="image/png", headers=_about_model(info))


def _match_row(row: list[float]) -> dict[str, Any]:
    """Give one match as JSON shows it."""
    query, *positions, score, mutual = row
    x, y, target_x, target_y = (round(position, POSITION_DECIMALS) for position in positions)
    return {
        "query": int(query),
        "source": (x, y),
        "target": (target_x, target_y),
        "score": round(score, SCORE_DECIMALS),
        "mutual": bool(mutual),
    }


def _on_picture(info: ModelInfo, cells: NDArray[np.float64], item: Inferred) -> NDArray[np.float64]:
    """Give positions on the grid as source pixels, none beyond the picture's edge."""
    geometry = item.prepared.geometry
    points = cells_to_source(cells, geometry, info.grid, info.preprocess.crop)
    inside: NDArray[np.float64] = np.clip(points, 0.0, (geometry.width, geometry.height))
    return inside


def _match(
    info: ModelInfo, pair: tuple[Inferred, Inferred], options: CorrespondOptions
) -> correspond.Matches:
    """Match all regions, or the asked points."""
    side = info.preprocess.crop
    source, target = (
        correspond.RegionMap(
            item.arrays["regions"], info.grid, is_visible(item.prepared.geometry, info.grid, side)
        )
        for item in pair
    )
    points = None
    if options.points is not None:
        asked = np.array(options.points, np.float64)
        points = source_to_cells(asked, pair[0].prepared.geometry, info.grid, side)
    return correspond.correspond(
        source, target, points=points, subcell=options.subcell, is_same=pair[0] is pair[1]
    )


def _with_query(info: ModelInfo, batch: Batch, options: AttentionOptions) -> Batch:
    """Let those of several images fail, each by itself, on which the query lies outside."""
    items, errors = list(batch.items), list(batch.errors)
    for index, item in enumerate(items):
        try:
            if item is not None:
                _query_cell(info, item, options)
        except PointOutOfBounds as error:
            if len(items) == 1:
                raise
            error.index = index
            if options.on_error == "fail":
                raise
            items[index] = None
            errors.append(error.to_dict())
    return Batch(items, sorted(errors, key=lambda error: error["index"]))


def _query_cell(info: ModelInfo, item: Inferred, options: AttentionOptions) -> QueryCell:
    """Give the index of the region that asks, "all", or None for a pooled map."""
    if options.query is None or options.query == "all":
        return options.query
    point = np.array([options.query], np.float64)
    try:
        cells = source_to_cells(point, item.prepared.geometry, info.grid, info.preprocess.crop)
    except PointOutOfBounds as error:
        error.field = "query"
        raise
    return int(correspond.cell_indices(cells, info.grid)[0])


def _maps(info: ModelInfo, item: Inferred, options: AttentionOptions) -> NDArray[np.float32]:
    """Pick the asked attention maps of one image: (heads, [queries,] rows, columns)."""
    cell = _query_cell(info, item, options)
    return attention_maps(item.arrays["attention"], info.grid, options.head, cell)


def _draw(info: ModelInfo, item: Inferred, options: AttentionOptions) -> bytes:
    """Draw one image's map as PNG."""
    (weights,) = _maps(info, item, options)
    geometry, side = item.prepared.geometry, info.preprocess.crop
    if item.prepared.picture is None:
        return render_heatmap(weights, geometry, side)
    return render_overlay(weights, geometry, side, item.prepared.picture)


def _images(
    batch: Batch, answer: Callable[[Inferred], dict[str, Any]]
) -> list[dict[str, Any] | None]:
    """Give each image's part of an answer, None for a failed one."""
    return [
        None if item is None else {"index": index, **_size(item), **answer(item)}
        for index, item in enumerate(batch.items)
    ]


def _size(item: Inferred) -> dict[str, int]:
    """Give the size of the upright picture in pixels."""
    return {"width": item.prepared.geometry.width, "height": item.prepared.geometry.height}


def _json(info: ModelInfo, content: dict[str, Any]) -> Response:
    """Write a JSON answer that names the model and its dimension."""
    body = to_json({"model": info.name, "dim": info.dim} | content)
    return Response(body, media_type="application/json")


def _npy(
    info: ModelInfo,
    batch: Batch,
    array: Callable[[Inferred], NDArray[np.float32]],
    shape: tuple[int, ...],
    encoding: Encoding,
) -> Response:
    """Write a `.npy` answer, an array an image."""
    stacked = np.full((len(batch.items), *shape), np.nan, np.float32)
    for row, item in zip(stacked, batch.items, strict=True):
        if item is not None:
            row[:] = array(item)
    headers = _about_model(info)
    if batch.errors:
        # Index and code alone: proxies cap headers, and 64 messages would be over it.
        brief = [{"index": error["index"], "code": error["code"]} for error in batch.errors]
        headers[ERRORS_HEADER] = json.dumps(brief)
    return Response(to_npy(stacked, encoding), media_type=NPY, headers=headers)


def _about_model(info: ModelInfo) -> dict[str, str]:
    """Name model and dimension in headers, for answers that are not JSON."""
    return {"x-esvit-model": info.name, "x-esvit-dim": str(info.dim)}

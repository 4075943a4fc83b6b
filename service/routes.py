"""The native endpoints: read, infer, answer."""

import math
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict
from typing import Any

import anyio.to_thread
import orjson
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from service import VERSION, answers, schemas
from service.contract import Output
from service.errors import Draining, InvalidRequest
from service.inputs import read_inputs, read_options
from service.openapi import describe
from service.pipeline import Keep, Pipeline


class PlainRoute(APIRoute):
    """Calls an endpoint with the request and sends what it gives: nothing is injected here."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Give the endpoint itself, in place of FastAPI's solving of dependencies."""
        handler: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return handler


router = APIRouter(route_class=PlainRoute)

PAIR = ("source", "target")
"""What `/correspond` calls its two pictures."""


@router.post("/embed", **describe(schemas.EmbedBody, schemas.EmbedAnswer))
async def embed(request: Request) -> Response:
    """Give one vector an image, L2-normalised unless asked otherwise."""
    pipeline = _pipeline(request)
    inputs = await read_inputs(request, max_images=pipeline.settings.max_images)
    options = read_options(schemas.EmbedOptions, inputs.fields)
    dim = pipeline.info.outputs[options.output][0]
    if options.dimensions is not None and options.dimensions > dim:
        raise InvalidRequest(
            f"{options.output} has {dim} dimensions", field="dimensions", limit=dim
        )
    request.state.expect(len(inputs.images) * (options.dimensions or dim))
    results = await pipeline.infer(inputs.images, [options.output], options.fit)
    batch = pipeline.settle(results, must_succeed=options.on_error == "fail")
    started = time.perf_counter()
    answer = answers.embeddings(pipeline.info, batch, options, as_npy=_wants_npy(request))
    pipeline.metrics.encode_seconds.observe(time.perf_counter() - started)
    return answer


@router.post("/regions", **describe(schemas.RegionsBody, schemas.RegionsAnswer))
async def regions(request: Request) -> Response:
    """Give every region's features and its box in source pixels."""
    pipeline = _pipeline(request)
    inputs = await read_inputs(request, max_images=pipeline.settings.max_images)
    options = read_options(schemas.RegionsOptions, inputs.fields)
    request.state.expect(len(inputs.images) * math.prod(pipeline.info.outputs["regions"]))
    results = await pipeline.infer(inputs.images, ["regions"], options.fit)
    batch = pipeline.settle(results, must_succeed=options.on_error == "fail")
    as_npy = _wants_npy(request)
    return await _encode(
        pipeline, lambda: answers.regions(pipeline.info, batch, options, as_npy=as_npy)
    )


@router.post(
    "/correspond", **describe(schemas.CorrespondBody, schemas.CorrespondAnswer, names=PAIR)
)
async def correspond(request: Request) -> Response:
    """Find the regions of one picture, or asked points of it, in another.

    A request that holds a single picture, as a raw body or a form with one file, compares it with
    itself: every region with the most similar other one.
    """
    pipeline = _pipeline(request)
    inputs = await read_inputs(request, max_images=len(PAIR), names=PAIR)
    options = read_options(schemas.CorrespondOptions, inputs.fields)
    limit = pipeline.settings.max_points
    if options.points is not None and not 1 <= len(options.points) <= limit:
        raise InvalidRequest(f"expected 1 to {limit} points", field="points", limit=limit)
    limit = pipeline.settings.max_top_k
    if options.top_k is not None and options.top_k > limit:
        raise InvalidRequest(f"expected 1 to {limit}", field="top_k", limit=limit)
    results = await pipeline.infer(inputs.images, ["regions"], options.fit)
    batch = pipeline.settle(results, must_succeed=True)
    source, target = batch.items[0], batch.items[-1]
    assert source is not None
    assert target is not None
    as_npy = _wants_npy(request)
    return await _encode(
        pipeline,
        lambda: answers.correspondences(pipeline.info, (source, target), options, as_npy=as_npy),
    )


@router.post("/attention", **describe(schemas.AttentionBody, schemas.AttentionAnswer, png=True))
async def attention(request: Request) -> Response:
    """Give the attention of the last block: from a point or pooled, by head or mean.

    With `render`, or `Accept: image/png`, a single image's answer is a PNG.
    """
    pipeline = _pipeline(request)
    num_heads = pipeline.info.outputs["attention"][0]
    inputs = await read_inputs(request, max_images=pipeline.settings.max_images)
    options = read_options(schemas.AttentionOptions, inputs.fields)
    accept = request.headers.get("accept", "")
    if "image/png" in accept and options.render == "none":
        options.render = "heatmap"
    _check_attention(options, num_heads, pipeline)
    if options.render == "none":
        shape = answers.attention_shape(pipeline.info, options)
        request.state.expect(len(inputs.images) * math.prod(shape))
    outputs: list[Output] = ["attention"]
    keep: Keep = "picture" if options.render == "overlay" else "nothing"
    results = await pipeline.infer(inputs.images, outputs, options.fit, keep=keep)
    batch = pipeline.settle(results, must_succeed=options.on_error == "fail")
    wants_png = len(results) == 1 and options.render != "none" and "application/json" not in accept
    as_npy = _wants_npy(request)
    item = batch.items[0]
    if wants_png and item is not None:
        return await _encode(pipeline, lambda: answers.drawing(pipeline.info, item, options))
    return await _encode(
        pipeline, lambda: answers.attention(pipeline.info, batch, options, as_npy=as_npy)
    )


@router.get("/info", response_model=schemas.InfoAnswer)
async def info(request: Request) -> Response:
    """Say what is served: model, outputs, engine, limits."""
    pipeline = _pipeline(request)
    content = asdict(pipeline.info)
    content.pop("format")
    content["model"] = content.pop("name")
    content |= {
        "dim": pipeline.info.dim,
        "engine": pipeline.engine.name,
        "provider": pipeline.engine.provider,
        "precision": pipeline.engine.precision,
        "gallery": request.app.state.gallery is not None,
        "limits": pipeline.settings.limits(),
        "version": VERSION,
        "loaded_at": request.app.state.reloader.loaded_at,
        "reload_failed_at": request.app.state.reloader.failed_at,
    }
    return Response(orjson.dumps(content), media_type="application/json")


@router.head("/livez", include_in_schema=False)
@router.get("/livez", response_model=dict[str, str])
async def livez(_: Request) -> Response:
    """Say that the event loop turns."""
    return Response(b'{"status":"alive"}', media_type="application/json")


@router.head("/readyz", include_in_schema=False)
@router.get("/readyz", response_model=dict[str, str])
async def readyz(request: Request) -> Response:
    """Say whether calls are answered: the model is loaded and has run, and no shutdown began."""
    if _pipeline(request).is_draining:
        raise Draining("the service is shutting down")
    return Response(b'{"status":"ready"}', media_type="application/json")


@router.get("/metrics", include_in_schema=False)
async def metrics(request: Request) -> Response:
    """Give the Prometheus series."""
    text = generate_latest(_pipeline(request).metrics.registry)
    return Response(text, media_type=CONTENT_TYPE_LATEST)


def _pipeline(request: Request) -> Pipeline:
    """Give the pipeline that this call keeps."""
    pipeline: Pipeline = request.state.pipeline
    return pipeline


def _wants_npy(request: Request) -> bool:
    """Tell whether the answer should be a `.npy` file."""
    return "application/x-npy" in request.headers.get("accept", "")


def _check_attention(options: schemas.AttentionOptions, num_heads: int, pipeline: Pipeline) -> None:
    """Refuse heads that are not there, and a drawing of all of them."""
    if num_heads == 0:
        raise InvalidRequest(f"{pipeline.info.arch} has no attention")
    if isinstance(options.head, int) and not 0 <= options.head < num_heads:
        raise InvalidRequest(f"expected a head from 0 to {num_heads - 1}", field="head")
    if options.head == "all" and options.render != "none":
        raise InvalidRequest("a drawing shows one head or the mean", field="head")
    if options.query == "all" and options.render != "none":
        raise InvalidRequest("a drawing shows one query or the pooled map", field="query")


async def _encode(pipeline: Pipeline, encode: Callable[[], Response]) -> Response:
    """Make a large answer in a worker thread."""
    started = time.perf_counter()
    response: Response = await anyio.to_thread.run_sync(encode)
    pipeline.metrics.encode_seconds.observe(time.perf_counter() - started)
    return response

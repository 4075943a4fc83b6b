"""The application: a model file behind the endpoints, and one shape for every error."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio.to_thread
from fastapi import FastAPI, Request, Response
from starlette.datastructures import State
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from service import VERSION
from service.batcher import untraced
from service.encoding import to_json
from service.engine import Engine
from service.errors import ServiceError
from service.gallery import routes as gallery_routes
from service.gallery.opening import open_gallery
from service.gate import CLIENT_LEFT, Gate
from service.keys import KeyCheck
from service.metrics import Metrics
from service.openapi import ask_for_keys
from service.pages import add_pages
from service.passage import Limits
from service.pipeline import Pipeline, load_pipeline
from service.protocols import cohere, kserve, openai
from service.reload import Leases, Reloader
from service.routes import router
from service.settings import Settings

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

    from service.tracing import Traces

logger = logging.getLogger(__name__)

FOREIGN = {"/v2/embed": cohere, "/v2": kserve, "/v1": openai}
"""Protocols of others by the beginning of their paths; the first that fits counts."""

OWN_HEADERS = (
    "x-api-key",
    "x-request-id",
    "x-esvit-errors",
    "x-esvit-model",
    "x-esvit-dim",
    "inference-header-content-length",
)
"""What pages of other origins, where they are let in, may send and read."""

HTTP_CODES = {400: "invalid_http", 404: "not_found", 405: "method_not_allowed"}


def create_app(
    settings: Settings, engine: Engine | None = None, exporter: "SpanExporter | None" = None
) -> FastAPI:
    """Load the model and build the application round it.

    Args:
        settings: Every knob.
        engine: Runs in place of the one that the settings ask for; the model file still says what
            it gives.
        exporter: Gets the traces in place of the collector that the settings name.

    Raises:
        ModelError: if the model cannot be served.
    """
    metrics = Metrics()
    traces = _make_traces(settings, exporter)
    app = FastAPI(
        title="EsViT",
        version=VERSION,
        summary="Embeddings, regions, correspondences and attention of images",
        lifespan=partial(_run, traces=traces),
        openapi_url="/openapi.json" if settings.docs else None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # to what the client gave as Host
    )
    trace = untraced if traces is None else traces.write
    app.state.gallery = None
    load = partial(_load, app.state, partial(load_pipeline, settings, metrics, engine, trace))
    every_s = settings.reload_every_s
    app.state.reloader = Reloader(app.state, settings.model, load, every_s=every_s)
    app.state.gallery = open_gallery(settings, app.state.pipeline.info)
    _add_routes(app, docs=settings.docs)
    if settings.keys():
        ask_for_keys(app)
    _add_layers(app, settings)
    if traces is not None:
        from service.tracing import Tracing

        app.add_middleware(Tracing, traces=traces)
    _add_gate(app, settings, metrics)
    return app


@asynccontextmanager
async def _run(app: FastAPI, *, traces: "Traces | None") -> AsyncIterator[None]:
    """Start what works beside the calls, and at the end let it finish."""
    reloader: Reloader = app.state.reloader
    app.state.pipeline.start()
    watching = asyncio.create_task(reloader.watch())
    yield
    watching.cancel()
    with suppress(asyncio.CancelledError):
        await watching
    await reloader.close()
    if traces is not None:
        await anyio.to_thread.run_sync(traces.close)
    if app.state.gallery is not None:
        await anyio.to_thread.run_sync(app.state.gallery.close)


def _add_routes(app: FastAPI, *, docs: bool) -> None:
    """Say which path is answered by what, and how an error is."""
    app.include_router(router)
    app.include_router(gallery_routes.router)
    for protocol in FOREIGN.values():
        app.include_router(protocol.router)
    app.add_exception_handler(ServiceError, _answer_service_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    app.add_exception_handler(ClientDisconnect, _answer_nobody)
    app.add_exception_handler(Exception, _answer_bug)
    add_pages(app, docs=docs)


def _load(state: State, load: Callable[[], Pipeline]) -> Pipeline:
    """Load the model, which must be the one that filled the gallery, where there is one.

    Raises:
        ModelError: if it cannot be served, or is not.
    """
    pipeline = load()
    if state.gallery is not None:
        state.gallery.check(pipeline.info)
    return pipeline


def _make_traces(settings: Settings, exporter: "SpanExporter | None") -> "Traces | None":
    """Give what keeps traces, if they are asked for; else nothing of it is loaded."""
    if exporter is None and not settings.trace_endpoint:
        return None
    from service.tracing import Traces, collector

    return Traces(exporter or collector(settings.trace_endpoint), settings.trace_share)


def _add_layers(app: FastAPI, settings: Settings) -> None:
    """Wrap the application, from the inside out; what is not asked for is not there."""
    app.add_middleware(Leases)
    if keys := settings.keys():
        app.add_middleware(KeyCheck, keys=keys, refuse=_refuse)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=("GET", "POST"),
            allow_headers=("authorization", "content-type", *OWN_HEADERS),
            expose_headers=("retry-after", *OWN_HEADERS),
        )


def _add_gate(app: FastAPI, settings: Settings, metrics: Metrics) -> None:
    """Wrap the application in what must hold for every call."""
    limits = Limits(
        max_bytes=settings.max_body_bytes,
        max_bytes_held=settings.max_bodies_bytes,
        timeout_s=settings.body_timeout_s,
        max_calls=settings.max_calls,
        max_answer_numbers=settings.max_answer_numbers,
        max_answers_bytes=settings.max_answers_bytes,
    )
    app.add_middleware(Gate, limits=limits, metrics=metrics)


async def _refuse(scope: Scope, receive: Receive, send: Send, error: ServiceError) -> None:
    """Answer for a layer that lets a call not pass."""
    response = await _answer_service_error(Request(scope), error)
    await response(scope, receive, send)


async def _answer_service_error(request: Request, error: Exception) -> Response:
    """Answer a refusal."""
    assert isinstance(error, ServiceError)
    pipeline: Pipeline = request.app.state.pipeline
    pipeline.metrics.refusals.labels(error.code).inc()
    headers = {} if error.retry_after_s is None else {"retry-after": str(error.retry_after_s)}
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    return _error(request, error.status, error.to_dict(), headers)


async def _answer_http_error(request: Request, error: Exception) -> Response:
    """Answer what no route takes."""
    assert isinstance(error, HTTPException)
    code = HTTP_CODES.get(error.status_code, "invalid_http")
    headers = dict(error.headers or {})
    message = f"expected {headers['Allow']}" if "Allow" in headers else str(error.detail)[:200]
    return _error(request, error.status_code, {"code": code, "message": message}, headers)


async def _answer_nobody(request: Request, error: Exception) -> Response:
    """End a call whose client left, or broke off, within the body: nobody reads this."""
    assert isinstance(error, ClientDisconnect)
    return Response(status_code=CLIENT_LEFT)


async def _answer_bug(request: Request, error: Exception) -> Response:
    """Answer what must not happen; the stack is in the log, under the request id."""
    logger.error("request %s failed", request.state.request_id, exc_info=error)
    # Starlette raises the error again, outside the gate, and the server then closes the connection.
    headers = {"connection": "close", "x-request-id": request.state.request_id}
    return _error(request, 500, {"code": "internal", "message": "internal error"}, headers)


def _error(
    request: Request, status: int, detail: Mapping[str, object], headers: dict[str, str]
) -> Response:
    """Give every error the same shape, on the paths of other protocols theirs."""
    detail = {**detail, "request_id": request.state.request_id}
    content: dict[str, object] = {"error": detail}
    for beginning, protocol in FOREIGN.items():
        if f"{request.url.path}/".startswith(f"{beginning}/"):
            status, content = protocol.error(status, detail)
            break
    return Response(to_json(content), status, headers, media_type="application/json")

"""Traces of calls, sent to an OpenTelemetry collector where one is named: extra `otel`.

A call is a span, by the trace context that its client sent or a new one; what the batcher did for
it are spans inside: `decode` and `queue` of each image, `inference` of each run.
"""

import time
from collections.abc import Collection

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Span, SpanKind, StatusCode, get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service import VERSION
from service.gate import METHODS
from service.tickets import Phase

SILENT = frozenset(("/livez", "/readyz", "/metrics"))
"""What machines ask every few seconds."""


class Traces:
    """What is known of calls, on its way to a collector."""

    def __init__(self, exporter: SpanExporter, share: float) -> None:
        """Start the thread that sends.

        Args:
            exporter: Where to.
            share: Of the calls whose client has not decided, the share that is traced.
        """
        resource = Resource.create({"service.name": "esvit", "service.version": VERSION})
        sampler = ParentBased(TraceIdRatioBased(share))
        self._provider = TracerProvider(sampler, resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self.tracer = self._provider.get_tracer("esvit", VERSION)

    def write(self, phases: Collection[Phase]) -> None:
        """Write phases into the span of the call in whose context this is called."""
        if not get_current_span().is_recording():
            return
        epoch_ns = time.time_ns() - time.perf_counter_ns()
        for name, started, ended in sorted(phases, key=lambda phase: phase.started):
            span = self.tracer.start_span(name, start_time=epoch_ns + int(1e9 * started))
            span.end(epoch_ns + int(1e9 * ended))

    def close(self) -> None:
        """Send what is left, and end the thread."""
        self._provider.shutdown()


class Tracing:
    """The ASGI layer that makes a span of every call."""

    def __init__(self, app: ASGIApp, *, traces: Traces) -> None:
        """Wrap an application."""
        self._app = app
        self._tracer = traces.tracer
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call."""
        if scope["type"] != "http" or scope["path"] in SILENT:
            await self._app(scope, receive, send)
            return
        context = self._propagator.extract(Headers(scope=scope))
        with self._tracer.start_as_current_span("call", context, SpanKind.SERVER) as span:

            async def send_and_note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    _describe(span, scope, message["status"])
                await send(message)

            await self._app(scope, receive, send_and_note)


def collector(endpoint: str) -> SpanExporter:
    """Give what sends spans to a collector, by OTLP over HTTP."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    return OTLPSpanExporter(endpoint)


def _describe(span: Span, scope: Scope, status: int) -> None:
    """Say what was called and how it ended; nothing else that a client wrote."""
    method = scope["method"] if scope["method"] in METHODS else "other"
    route = getattr(scope.get("route"), "path", "other")
    span.update_name(f"{method} {route}")
    span.set_attribute("http.request.method", method)
    span.set_attribute("http.route", route)
    span.set_attribute("http.response.status_code", status)
    span.set_attribute("esvit.request_id", scope["state"]["request_id"])
    if status >= 500:
        span.set_status(StatusCode.ERROR)

"""Traces, as a collector would get them."""

import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from pydantic import ValidationError

from service.app import create_app
from service.settings import Settings
from tests.service.calls import post_form, post_raw
from tests.service.pictures import png, scene
from tests.service.server import serve

A = png(scene(36, 36))
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@pytest.fixture
def traced(settings):
    """Serve, and give a function that ends the service and then gives its spans by name."""
    exporter = InMemorySpanExporter()
    serving = serve(create_app(settings, exporter=exporter))
    client = serving.__enter__()
    ended = []

    def spans():
        ended.append(serving.__exit__(None, None, None))
        found = {}
        for span in exporter.get_finished_spans():
            found.setdefault(span.name, []).append(span)
        return found

    yield client, spans
    if not ended:
        serving.__exit__(None, None, None)


def test_a_call_is_a_span_and_what_was_done_for_it_lies_inside(traced):
    client, spans = traced
    request_id = post_form(client, "/embed", [A, A]).headers["x-request-id"]
    found = spans()
    (call,) = found["POST /embed"]
    assert call.attributes == {
        "http.request.method": "POST",
        "http.route": "/embed",
        "http.response.status_code": 200,
        "esvit.request_id": request_id,
    }
    assert [len(found[name]) for name in ("decode", "queue")] == [2, 2]
    assert 1 <= len(found["inference"]) <= 2
    for name in ("decode", "queue", "inference"):
        for span in found[name]:
            assert span.parent.span_id == call.context.span_id
            assert call.start_time <= span.start_time <= span.end_time <= call.end_time


def test_the_clients_trace_goes_on(traced):
    client, spans = traced
    client.headers["traceparent"] = f"00-{TRACE_ID}-b7ad6b7169203331-01"
    post_raw(client, "/embed", A)
    (call,) = spans()["POST /embed"]
    assert f"{call.context.trace_id:032x}" == TRACE_ID
    assert f"{call.parent.span_id:016x}" == "b7ad6b7169203331"


def test_refusals_and_unknown_paths_are_spans_that_tell_nothing_of_the_client(traced):
    client, spans = traced
    post_raw(client, "/embed", b"not an image", note="secret")
    client.get("/secret")
    client.request("PROPFIND", "/secret")
    client.get("/livez")
    found = spans()
    assert sorted(found) == ["GET other", "POST /embed", "other other"]
    (call,) = found["POST /embed"]
    assert call.attributes["http.response.status_code"] == 422
    assert call.status.status_code is StatusCode.UNSET
    everything = str([span.to_json() for group in found.values() for span in group]).lower()
    assert "secret" not in everything


def test_a_share_of_none_traces_nothing_but_what_the_client_decides(settings):
    exporter = InMemorySpanExporter()
    app = create_app(settings.model_copy(update={"trace_share": 0.0}), exporter=exporter)
    with serve(app) as client:
        post_raw(client, "/embed", A)
        assert post_raw(client, "/embed", A).status_code == 200
        client.headers["traceparent"] = f"00-{TRACE_ID}-b7ad6b7169203331-01"
        post_raw(client, "/regions", A)
    assert {span.name for span in exporter.get_finished_spans()} == {
        "POST /regions",
        "decode",
        "queue",
        "inference",
    }


def test_a_fault_of_the_service_is_an_error_of_its_span(settings):
    exporter = InMemorySpanExporter()
    app = create_app(settings, exporter=exporter)
    with serve(app) as client:
        app.state.pipeline.is_draining = True
        assert client.get("/v2/models/tiny/ready").status_code == 503
    (call,) = exporter.get_finished_spans()
    assert call.attributes["http.response.status_code"] == 503
    assert call.status.status_code is StatusCode.ERROR


class Collector(BaseHTTPRequestHandler):
    """Notes what it is sent."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.asked.append((self.path, self.headers["content-type"], body))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        """Say nothing."""


def test_spans_arrive_at_the_collector_that_is_named(settings):
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        server.asked = []
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        endpoint = f"http://127.0.0.1:{server.server_port}/v1/traces"
        with serve(create_app(settings.model_copy(update={"trace_endpoint": endpoint}))) as client:
            request_id = post_raw(client, "/embed", A).headers["x-request-id"]
        server.shutdown()
        thread.join()
    ((path, kind, body),) = server.asked
    assert (path, kind) == ("/v1/traces", "application/x-protobuf")
    for expected in ("POST /embed", "decode", "inference", request_id):
        assert expected.encode() in body


def test_off_by_default_and_not_even_loaded():
    program = (
        "import sys; from service.app import create_app; from service.settings import Settings;"
        "create_app(Settings(engine='onnxruntime', threads=1));"
        "print('opentelemetry.sdk' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_an_endpoint_that_is_no_address_is_refused():
    with pytest.raises(ValidationError, match="begins with http:// or https://"):
        Settings(trace_endpoint="collector:4318")


def test_an_extra_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto", None)
    monkeypatch.delitem(sys.modules, "opentelemetry.exporter.otlp.proto.http", raising=False)
    with pytest.raises(ValidationError, match=r"pip install '\.\[otel\]'"):
        Settings(trace_endpoint="http://127.0.0.1:4318/v1/traces")

"""Every refusal over HTTP: its status, its code, its shape."""

import json
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import httpx
import numpy as np
import pytest

from service import errors
from service.app import create_app
from service.contract import ModelInfo
from service.errors import ServiceError
from tests.service.calls import post_form, post_json, post_raw
from tests.service.pictures import png, scene, to_file
from tests.service.server import read_until, serve
from tests.service.tiny_model import INFO, write_tiny_model

A = png(scene(36, 36))
SOON_S = 20.0

CALLS = {
    "/embed": ["embeddings"],
    "/regions": ["images"],
    "/attention": ["images"],
    "/correspond": ["matches"],
}


def refused(response: httpx.Response, status: int, code: str) -> dict:
    """Hold an answer against the shape of every refusal, and give its error."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    assert len(response.content) < 16_000
    assert set(response.json()) == {"error"}
    error = response.json()["error"]
    assert set(error) <= {"code", "message", "field", "index", "limit", "request_id"}
    assert error["code"] == code
    assert error["message"]
    assert error["request_id"] == response.headers["x-request-id"]
    return error


def raw(client, path, body, content_type="image/png", **options) -> httpx.Response:
    headers = {"content-type": content_type}
    return client.post(path, content=body, headers=headers, params=options)


def all_classes(base=ServiceError) -> list[type[ServiceError]]:
    return [base] + [found for child in base.__subclasses__() for found in all_classes(child)]


def test_every_refusal_is_drawn_in_the_tree_with_its_status_and_code():
    tree = errors.__doc__
    for cls in all_classes():
        (line,) = [line for line in tree.splitlines() if cls.__name__ in line.split()]
        assert str(cls.status) in line
        assert not cls.retry_after_s or "Retry-After" in tree
        assert cls.code in line or cls.__subclasses__()  # classes of classes are not raised


def test_codes_are_unique():
    codes = [cls.code for cls in all_classes()]
    assert len(set(codes)) == len(codes)


# What a body may be.


@pytest.mark.parametrize("endpoint", CALLS)
@pytest.mark.parametrize(
    ("body", "content_type", "status", "code"),
    [
        (b"{", "application/json", 400, "invalid_json"),
        (b"[1]", "application/json", 400, "invalid_json"),
        (b"x", "multipart/form-data; boundary=b", 400, "invalid_multipart"),
        (b"hello", "text/plain", 415, "unsupported_media_type"),
        (to_file(scene(), "GIF"), "image/gif", 415, "unsupported_image_format"),
        (b"", "image/png", 422, "undecodable_image"),
        (A[:200], "image/png", 422, "undecodable_image"),
        (png(scene(201, 1)), "image/png", 413, "image_too_large"),
        (b"{}", "application/json", 422, "invalid_request"),
    ],
)
def test_a_bad_body_is_refused_by_every_endpoint(
    client, endpoint, body, content_type, status, code
):
    refused(raw(client, endpoint, body, content_type), status, code)


@pytest.mark.parametrize(
    ("source", "code"),
    [
        ({"base64": "?"}, "invalid_base64"),
        ({"url": "http://127.0.0.1/x.jpg"}, "urls_disabled"),
        ({"base64": "AAAA"}, "undecodable_image"),
        (7, "invalid_request"),
    ],
)
def test_a_bad_image_in_json_is_refused_by_every_endpoint(client, source, code):
    for endpoint in ("/embed", "/regions", "/attention"):
        refused(client.post(endpoint, json={"images": [source]}), 422, code)
    pair = {"source": {"base64": "iVBORw0="}, "target": source}
    error = refused(client.post("/correspond", json=pair), 422, "undecodable_image")
    assert error["index"] == 0


def test_the_second_of_a_pair_is_named_by_its_index(client):
    response = post_json(client, "/correspond", [A, b"not an image"])
    assert refused(response, 422, "undecodable_image")["index"] == 1


@pytest.mark.parametrize("endpoint", CALLS)
def test_an_unknown_option_is_refused_by_every_endpoint(client, endpoint):
    images = [A, A] if endpoint == "/correspond" else [A]
    for post in (post_form, post_json):
        error = refused(post(client, endpoint, images, colour=3), 422, "invalid_request")
        assert error["field"] == "colour"
    assert refused(post_raw(client, endpoint, A, fit="zoom"), 422, "invalid_request")["field"]


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"head": 2}, "head"),
        ({"head": -1}, "head"),
        ({"head": 10**15}, "head"),
        ({"head": "all", "render": "heatmap"}, "head"),
        ({"query": [37, 3]}, "query"),
        ({"query": [0, 0]}, "query"),  # cut away by the crop
    ],
)
def test_attention_refuses_heads_and_points_that_are_not_there(client, options, field):
    response = post_json(client, "/attention", [A], **options)
    code = "region_out_of_bounds" if field == "query" else "invalid_request"
    assert refused(response, 422, code)["field"] == field


def test_correspond_refuses_points_that_are_not_there(client):
    response = post_json(client, "/correspond", [A, A], points=[[9, 9], [99, 9]])
    assert refused(response, 422, "region_out_of_bounds")["field"] == "points[1]"
    error = refused(post_json(client, "/correspond", [A, A], points=[]), 422, "invalid_request")
    assert (error["field"], error["limit"]) == ("points", 1000)


def test_correspond_refuses_a_third_picture(client):
    error = refused(post_many(client, "/correspond", 3), 413, "batch_too_large")
    assert error["limit"] == 2


def post_many(client, path, count):
    return client.post(path, files=[("file", ("name", A))] * count)


# What no route takes.


def test_an_unknown_path_is_not_found(client):
    refused(client.get("/nothing/here"), 404, "not_found")


@pytest.mark.parametrize("path", CALLS)
def test_another_method_is_not_allowed_and_the_right_one_named(client, path):
    response = client.get(path)
    refused(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_a_request_id_of_the_client_comes_back_in_the_error(client):
    response = client.get("/nothing", headers={"x-request-id": "mine-1"})
    assert refused(response, 404, "not_found")["request_id"] == "mine-1"


# What is hostile.


SECRET = "do-not-echo-me"


@pytest.mark.parametrize("endpoint", CALLS)
@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe" + SECRET.encode(),
        b'{"images": NaN, "x": "do-not-echo-me"}',
        b'{"images": [1e999], "x": "do-not-echo-me"}',
        b'{"images": [{"base64": "do-not-echo-me\\ud800"}]}',
        b'{"images": [{"base64": "do-not-echo-me"}], "fit": "do-not-echo-me"}',
        b'{"images": [{"do-not-echo-me": "x"}], "points": [[1, "do-not-echo-me"]]}',
        b'{"source": {"url": "do-not-echo-me"}, "target": {"base64": "do-not-echo-me"}}',
        b'{"images": ' * 30_000,
        b"[" * 100_000,
        json.dumps({f"{SECRET} {n}": n for n in range(100_000)}).encode(),
        json.dumps({"images": [{"base64": ""}] * 60, SECRET + "!": SECRET}).encode(),
        b'"do-not-echo-me"',
        b"",
    ],
    ids=lambda body: body[:24].decode("latin-1"),
)
def test_hostile_json_is_refused_shortly_and_echoes_nothing(client, endpoint, body):
    response = raw(client, endpoint, body, "application/json")
    assert 400 <= response.status_code < 500
    refused(response, response.status_code, response.json()["error"]["code"])
    assert SECRET not in response.text


@pytest.mark.parametrize(
    "content_type",
    ["", "x", "image", "application/json; charset=utf-16", "multipart/form-data; boundary=" * 3],
)
def test_strange_content_types_are_refused(client, content_type):
    response = raw(client, "/embed", b"anything", content_type)
    assert 400 <= response.status_code < 500
    refused(response, response.status_code, response.json()["error"]["code"])


@pytest.mark.parametrize(
    "query",
    ["fit=%ff", "fit=%00", "dimensions=1e999", "dimensions=" + "9" * 5000, "%ed%a0%80=1", "&&=&="],
)
def test_strange_queries_are_refused(client, query):
    headers = {"content-type": "image/png"}
    response = client.post("/embed?" + query, content=A, headers=headers)
    refused(response, 422, "invalid_request")


def test_after_all_that_a_good_call_is_answered(client):
    assert post_raw(client, "/embed", A).status_code == 200


# What exceeds a limit.


@pytest.fixture(scope="module")
def strict(settings):
    limits = {
        "max_body_bytes": 20_000,
        "max_images": 3,
        "max_image_pixels": 5_000,
        "max_points": 4,
        "max_queue_images": 2,
        "body_timeout_s": 0.2,
    }
    with serve(create_app(settings.model_copy(update=limits))) as client:
        yield client


def padded(size: int) -> bytes:
    """Give a picture file of so many bytes: what follows a PNG's end is ignored."""
    return A + bytes(size - len(A))


def test_a_body_of_exactly_the_limit_is_answered_and_one_byte_more_refused(strict):
    assert post_raw(strict, "/embed", padded(20_000)).status_code == 200
    error = refused(post_raw(strict, "/embed", padded(20_001)), 413, "body_too_large")
    assert error["limit"] == 20_000


def test_a_chunked_body_is_counted_while_it_is_read(strict):
    def chunks(size):
        body = padded(size)
        yield from (body[start : start + 7_000] for start in range(0, size, 7_000))

    headers = {"content-type": "image/png"}
    assert strict.post("/embed", content=chunks(20_000), headers=headers).status_code == 200
    refused(strict.post("/embed", content=chunks(20_001), headers=headers), 413, "body_too_large")


def test_a_body_that_stops_arriving_is_a_timeout(strict):
    with socket.create_connection((strict.base_url.host, strict.base_url.port)) as connection:
        connection.sendall(
            b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 100\r\n\r\nhalf"
        )
        connection.settimeout(SOON_S)
        answer = read_until(connection, b"}}")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer


def test_one_image_more_than_the_limit_is_refused(strict):
    error = refused(post_many(strict, "/embed", 4), 413, "batch_too_large")
    assert error["limit"] == 3


def test_one_pixel_more_than_the_limit_is_refused(strict):
    assert post_raw(strict, "/embed", png(scene(100, 50))).status_code == 200
    response = post_raw(strict, "/embed", png(scene(5001 // 3, 3)))
    refused(response, 413, "image_too_large")


def test_one_point_more_than_the_limit_is_refused(strict):
    four = [[9, 9]] * 4
    assert post_json(strict, "/correspond", [A, A], points=four).status_code == 200
    response = post_json(strict, "/correspond", [A, A], points=[*four, [9, 9]])
    assert refused(response, 422, "invalid_request")["limit"] == 4


def test_more_images_than_the_queue_holds_are_refused_with_a_time_to_wait(strict):
    response = post_many(strict, "/embed", 3)
    assert refused(response, 429, "overloaded")["limit"] == 2
    assert response.headers["retry-after"] == "1"


# What goes wrong within.


class Engine:
    """Gives zeros; can be held, can fail, can give nonsense."""

    name, provider, precision = "fake", "fake", "fp32"
    num_runners, max_batch, patience_s = 1, 4, 0.0

    def __init__(self, info: ModelInfo = INFO) -> None:
        self.shapes = info.outputs
        self.num_images: list[int] = []
        self.is_running = threading.Semaphore(0)
        self.may_go_on = threading.Event()
        self.may_go_on.set()
        self.fails, self.drops = False, 0

    def run(self, pixels: np.ndarray, outputs: Sequence[str]) -> dict[str, np.ndarray]:
        self.num_images.append(len(pixels))
        self.is_running.release()
        assert self.may_go_on.wait(SOON_S)
        if self.fails:
            raise RuntimeError("out of order, at /secret/path")
        wanted = outputs[self.drops :]
        return {name: np.zeros((len(pixels), *self.shapes[name]), np.float32) for name in wanted}


@pytest.fixture(scope="module")
def breakable(settings):
    engine = Engine()
    app = create_app(settings.model_copy(update={"deadline_s": 0.3}), engine)
    assert engine.is_running.acquire(timeout=SOON_S)  # the warm-up
    with serve(app) as client:
        yield client, engine, app
        engine.may_go_on.set()


@pytest.fixture
def held(breakable):
    """Hold the engine in a run for another caller while the test lasts."""
    client, engine, _ = breakable
    while engine.is_running.acquire(blocking=False):
        pass
    engine.may_go_on.clear()
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(post_raw, client, "/embed", A)
        assert engine.is_running.acquire(timeout=SOON_S)
        yield client, engine
        engine.may_go_on.set()
        first.result()


def test_an_answer_that_would_come_too_late_is_given_up(held):
    client, _ = held
    response = post_raw(client, "/embed", A)
    refused(response, 503, "deadline_exceeded")
    assert response.headers["retry-after"] == "1"


def test_the_work_of_a_client_that_hung_up_is_not_done(breakable, held):
    client, engine = held
    registry = breakable[2].state.pipeline.metrics.registry

    def left() -> float:
        labels = {"path": "/embed", "status": "499"}
        return registry.get_sample_value("esvit_requests_total", labels) or 0

    before, runs = left(), len(engine.num_images)
    with socket.create_connection((client.base_url.host, client.base_url.port)) as connection:
        connection.sendall(
            b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(A), A)
        )
    while left() == before:
        client.get("/livez")  # each call lets the loop turn
    engine.may_go_on.set()
    post_raw(client, "/embed", A)
    assert sum(engine.num_images[runs:]) == 1


def test_a_failing_engine_is_an_internal_error_that_tells_nothing(breakable):
    client, engine, _ = breakable
    engine.fails = True
    response = post_form(client, "/embed", [A, A])
    engine.fails = False
    error = refused(response, 500, "internal")
    assert error["message"] == "internal error"
    assert "secret" not in response.text
    assert post_raw(client, "/embed", A).status_code == 200


def test_a_bug_is_an_internal_error_that_tells_nothing(breakable, caplog):
    client, engine, _ = breakable
    engine.drops = 1  # an output is missing: the answer cannot be written
    response = post_raw(client, "/embed", A)
    engine.drops = 0
    error = refused(response, 500, "internal")
    assert error["message"] == "internal error"
    assert response.headers["connection"] == "close"  # else a client would use it again
    assert f"request {error['request_id']} failed" in caplog.text
    assert post_raw(client, "/embed", A).status_code == 200


def test_a_service_that_is_shutting_down_is_alive_but_not_ready(breakable):
    client, _, app = breakable
    app.state.pipeline.is_draining = True
    response = client.get("/readyz")
    alive = client.get("/livez")
    app.state.pipeline.is_draining = False
    refused(response, 503, "draining")
    assert response.headers["retry-after"] == "1"
    assert alive.status_code == 200


def test_an_architecture_without_attention_says_so(settings, tmp_path):
    info = replace(INFO, outputs=INFO.outputs | {"attention": (0, 0, 0)})
    model = write_tiny_model(tmp_path / "model.onnx", info.to_json())
    app = create_app(settings.model_copy(update={"model": model}), Engine(info))
    with serve(app) as client:
        error = refused(post_raw(client, "/attention", A), 422, "invalid_request")
        assert error["message"] == "tiny_patches has no attention"
        assert post_raw(client, "/regions", A).status_code == 200

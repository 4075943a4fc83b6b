"""Every refusal over HTTP: its status, its code, its shape."""

import json

import httpx
import pytest

from service import errors
from service.errors import ServiceError
from tests.service.calls import post_form, post_json, post_many, post_raw, refused
from tests.service.pictures import png, scene, to_file

A = png(scene(36, 36))

CALLS = ["/embed", "/regions", "/attention", "/correspond"]


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


def test_a_drawing_of_all_queries_is_refused(client):
    response = post_json(client, "/attention", [A], query="all", render="overlay")
    assert refused(response, 422, "invalid_request")["field"] == "query"


def test_correspond_refuses_points_that_are_not_there(client):
    response = post_json(client, "/correspond", [A, A], points=[[9, 9], [99, 9]])
    assert refused(response, 422, "region_out_of_bounds")["field"] == "points[1]"
    error = refused(post_json(client, "/correspond", [A, A], points=[]), 422, "invalid_request")
    assert (error["field"], error["limit"]) == ("points", 1000)


def test_correspond_refuses_a_third_picture(client):
    error = refused(post_many(client, "/correspond", A, 3), 413, "batch_too_large")
    assert error["limit"] == 2


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

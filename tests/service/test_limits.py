"""What exceeds a limit is refused over HTTP, what meets it is answered."""

import base64
import socket

import pytest

from service.app import create_app
from tests.service.calls import post_json, post_many, post_raw, refused
from tests.service.pictures import png, scene, to_file
from tests.service.server import read_until, serve

A = png(scene(36, 36))
SOON_S = 20.0


@pytest.fixture(scope="module")
def strict(settings):
    limits = {
        "max_body_bytes": 20_000,
        "max_images": 3,
        "max_image_pixels": 5_000,
        "max_points": 4,
        "max_queue_images": 2,
        "max_image_aspect": 1700,
        "max_image_frames": 3,
        "max_decoded_bytes": 4 * 4_900,
        "max_top_k": 5,
    }
    with serve(create_app(settings.model_copy(update=limits))) as client:
        yield client


@pytest.fixture(scope="module")
def roomy(settings):
    """Bounds nothing but the numbers of an answer."""
    changed = settings.model_copy(update={"max_answer_numbers": 2 * 16 * 16})
    with serve(create_app(changed)) as client:
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


def test_a_body_that_stops_arriving_is_a_timeout(settings):
    app = create_app(settings.model_copy(update={"body_timeout_s": 0.2}))
    with (
        serve(app) as client,
        socket.create_connection((client.base_url.host, client.base_url.port)) as connection,
    ):
        connection.sendall(
            b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
            b"Content-Length: 100\r\n\r\nhalf"
        )
        connection.settimeout(SOON_S)
        answer = read_until(connection, b"}}")
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer


def test_one_image_more_than_the_limit_is_refused(strict):
    error = refused(post_many(strict, "/embed", A, 4), 413, "batch_too_large")
    assert error["limit"] == 3


def test_one_pixel_more_than_the_limit_is_refused(strict):
    grey = scene(100, 50).convert("L")
    assert post_raw(strict, "/embed", png(grey)).status_code == 200
    response = post_raw(strict, "/embed", png(scene(5001 // 3, 3).convert("L")))
    assert refused(response, 413, "image_too_large")["limit"] == 5_000


def test_one_byte_more_of_memory_than_the_limit_is_refused(strict):
    assert post_raw(strict, "/embed", png(scene(98, 50))).status_code == 200  # 4 bytes a pixel
    response = post_raw(strict, "/embed", png(scene(29, 169)))
    assert refused(response, 413, "image_too_large")["limit"] == 4 * 4_900


def test_a_side_longer_than_the_limit_is_refused(strict):
    assert post_raw(strict, "/embed", png(scene(1700, 1))).status_code == 200
    response = post_raw(strict, "/embed", png(scene(1701, 1)))
    assert refused(response, 413, "image_too_large")["limit"] == 1700


@pytest.mark.parametrize("kind", ["PNG", "WEBP"])
def test_one_frame_more_than_the_limit_is_refused(strict, kind):
    def animation(count):
        frames = [scene(36, 36, seed) for seed in range(count)]
        return to_file(frames[0], kind, save_all=True, append_images=frames[1:], quality=10)

    assert post_raw(strict, "/embed", animation(3)).status_code == 200
    response = post_raw(strict, "/embed", animation(4))
    assert refused(response, 413, "image_too_large")["limit"] == 3


def test_one_match_more_than_the_limit_is_refused(strict):
    assert post_json(strict, "/correspond", [A, A], top_k=5).status_code == 200
    response = post_json(strict, "/correspond", [A, A], top_k=6)
    assert refused(response, 422, "invalid_request")["limit"] == 5


def test_one_call_more_than_the_limit_is_refused_before_its_body(settings):
    app = create_app(settings.model_copy(update={"max_calls": 2}))
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 9\r\n"
    with serve(app) as client:
        where = (client.base_url.host, client.base_url.port)
        calls = [socket.create_connection(where, timeout=SOON_S) for _ in range(2)]
        for call in calls:
            call.sendall(head + b"Expect: 100-continue\r\n\r\n")
            assert read_until(call, b"\r\n\r\n").startswith(b"HTTP/1.1 100 ")
        response = post_raw(client, "/embed", A)
        assert refused(response, 429, "overloaded")["limit"] == 2
        assert client.get("/livez").status_code == 200
        for call in calls:
            call.close()
        while (response := post_raw(client, "/embed", A)).status_code == 429:
            assert response.headers["retry-after"] == "1"
        assert response.status_code == 200


@pytest.mark.parametrize(
    ("path", "options", "most"),
    [
        ("/attention", {"head": 0, "query": "all"}, 2),
        ("/attention", {"head": "all", "query": "all"}, 1),
        ("/regions", {}, 2),  # 16 x 12 an image
    ],
)
def test_an_answer_of_more_numbers_than_the_limit_is_refused(roomy, path, options, most):
    assert post_json(roomy, path, [A] * most, **options).status_code == 200
    response = post_json(roomy, path, [A] * (most + 1), **options)
    assert refused(response, 413, "answer_too_large")["limit"] == 512


@pytest.mark.parametrize(("count", "status"), [(2, 200), (3, 413)])
def test_answers_of_foreign_protocols_are_bounded_as_well(roomy, count, status):
    data = [base64.b64encode(A).decode()] * count
    tensor = {"name": "IMAGE", "shape": [count], "datatype": "BYTES", "data": data}
    body = {"inputs": [tensor], "outputs": [{"name": "REGIONS"}]}
    response = roomy.post("/v2/models/tiny/infer", json=body)
    assert response.status_code == status
    assert status == 200 or "576 numbers; at most 512" in response.json()["error"]


def test_drawings_have_no_numbers(roomy):
    response = post_json(roomy, "/attention", [A] * 20, render="heatmap")
    assert response.status_code == 200


def test_every_limit_is_shown(strict, settings):
    limits = strict.get("/info").json()["limits"]
    assert limits["max_top_k"] == 5
    named = {name for name in type(settings).model_fields if name.startswith("max_")}
    assert named - limits.keys() == {"max_batch"}
    assert {"deadline_s", "header_timeout_s", "body_timeout_s", "image_formats"} <= limits.keys()


def test_one_point_more_than_the_limit_is_refused(strict):
    four = [[9, 9]] * 4
    assert post_json(strict, "/correspond", [A, A], points=four).status_code == 200
    response = post_json(strict, "/correspond", [A, A], points=[*four, [9, 9]])
    assert refused(response, 422, "invalid_request")["limit"] == 4


def test_more_images_than_the_queue_holds_are_refused_with_a_time_to_wait(strict):
    response = post_many(strict, "/embed", A, 3)
    assert refused(response, 429, "overloaded")["limit"] == 2
    assert response.headers["retry-after"] == "1"

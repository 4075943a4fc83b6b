"""What exceeds a limit is refused over HTTP, what meets it is answered."""

import socket

import pytest

from service.app import create_app
from tests.service.calls import post_json, post_many, post_raw, refused
from tests.service.pictures import png, scene
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
    error = refused(post_many(strict, "/embed", A, 4), 413, "batch_too_large")
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
    response = post_many(strict, "/embed", A, 3)
    assert refused(response, 429, "overloaded")["limit"] == 2
    assert response.headers["retry-after"] == "1"

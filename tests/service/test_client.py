"""Both clients against the real service, and against servers that are busy, broken or not there."""

import asyncio
import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import numpy as np
import pytest
from PIL import Image

from service.client import AsyncClient, Client, Refused, Retry
from tests.service.calls import post_json
from tests.service.known import OTHER, SQUARE, A, B, expected, good, unit
from tests.service.pictures import png, scene
from tests.service.tiny_model import C

AT_ONCE = Retry(first_wait_s=0.001, longest_wait_s=5.0)


@pytest.fixture(scope="module")
def url(client) -> str:
    return str(client.base_url)


@pytest.fixture(scope="module")
def ours(url) -> Iterator[Client]:
    with Client(url, batch_size=3, concurrency=4) as ours:
        yield ours


def in_async(url, ask, **options):
    """Run one coroutine with an asynchronous client."""

    async def run():
        async with AsyncClient(url, **options) as client:
            return await ask(client)

    return asyncio.run(run())


def test_every_kind_of_picture_gives_the_models_vector(ours, tmp_path):
    path = tmp_path / "a.png"
    path.write_bytes(A)
    vectors = ours.embed([path, str(path), A, SQUARE, np.asarray(SQUARE)])
    assert (vectors.shape, vectors.dtype) == ((5, C), np.float32)
    np.testing.assert_allclose(
        vectors, [unit(expected(SQUARE)["embedding"].ravel())] * 5, atol=1e-6
    )


def test_options_reach_the_service(ours, url, client):
    options = {"output": "last_blocks", "normalize": False, "dimensions": 5, "fit": "pad"}
    own = good(post_json(client, "/embed", [A], **options))["embeddings"]
    np.testing.assert_array_equal(ours.embed([A], **options), np.array(own, np.float32))
    again = in_async(url, lambda client: client.embed([A], **options))
    np.testing.assert_array_equal(again, ours.embed([A], **options))


def test_no_pictures_give_no_vectors(ours):
    assert ours.embed([]).shape == (0, 0)


def many(count: int) -> list[bytes]:
    return [png(scene(40, 36, seed=seed)) for seed in range(count)]


def test_a_stream_keeps_the_order_of_its_pictures(ours, url):
    pictures = many(32)
    alone = np.concatenate([ours.embed([picture]) for picture in pictures])
    np.testing.assert_allclose(list(ours.stream(iter(pictures))), alone, atol=1e-5)

    async def collect(client):
        return [vector async for vector in client.stream(iter(pictures))]

    found = in_async(url, collect, batch_size=3, concurrency=4)
    np.testing.assert_allclose(found, alone, atol=1e-5)


def test_a_stream_takes_no_more_than_it_needs_in_the_callers_thread(ours):
    taken, threads = [], set()

    def pictures():
        for picture in many(40):
            taken.append(picture)
            threads.add(threading.get_ident())
            yield picture

    stream = ours.stream(pictures())
    assert taken == []
    next(stream)
    assert len(taken) <= 3 * 4
    stream.close()
    assert threads == {threading.get_ident()}
    assert len(ours.embed([A])) == 1


def test_an_asynchronous_stream_takes_no_more_than_it_needs(url):
    taken = []

    async def first(client):
        stream = client.stream(taken.append(1) or picture for picture in many(40))
        await anext(stream)
        await stream.aclose()

    in_async(url, first, batch_size=3, concurrency=4)
    assert len(taken) <= 3 * 4


def test_a_bad_picture_is_refused_in_its_place_and_costs_no_other_its_vector(ours, tmp_path):
    pictures = [A, b"no picture", B, tmp_path / "missing.jpg", b"GIF89a"]
    results = list(ours.stream(pictures))
    good_ones = [results[0], results[2]]
    np.testing.assert_allclose(good_ones, ours.embed([A, B]), atol=1e-6)
    codes = [result.code for result in results if isinstance(result, Refused)]
    assert codes == ["undecodable_image", "unreadable_file", "unsupported_image_format"]


def test_what_cannot_become_a_picture_costs_no_other_its_vector(ours):
    results = list(ours.stream([A, "a\0b", Image.new("La", (4, 4)), B]))
    codes = [result.code for result in results if isinstance(result, Refused)]
    assert codes == ["unreadable_file", "unreadable_file"]
    np.testing.assert_allclose([results[0], results[3]], ours.embed([A, B]), atol=1e-6)


@pytest.mark.parametrize(
    "picture",
    [Image.new("F", (4, 4)), Image.new("I", (4, 4)), np.zeros(9, np.uint8), np.zeros((0, 0), "u1")],
)
def test_numbers_that_are_no_colours_are_refused(ours, picture):
    with pytest.raises(TypeError, match=r"whose scale is unknown|expected uint8"):
        ours.embed([picture])


def test_alpha_is_kept_whatever_holds_it(ours):
    half = Image.new("RGBA", (32, 32), (200, 30, 30, 128))
    kept = ours.embed([half, half.convert("RGBa")])
    np.testing.assert_allclose(kept[1], kept[0], atol=1e-2)


def test_a_picture_that_is_sent_alone_is_refused_in_its_place(ours, tmp_path):
    (refused,) = ours.stream([b"no picture"])
    assert (refused.code, refused.status) == ("undecodable_image", 422)
    (unreadable,) = ours.stream([tmp_path / "missing.jpg"])
    assert unreadable.code == "unreadable_file"


def test_embedding_a_bad_picture_fails(ours):
    with pytest.raises(Refused, match="undecodable_image"):
        ours.embed([A, b"no picture"])


def test_a_call_that_is_refused_as_a_whole_fails_the_stream(ours):
    for pictures in ([A], [A, B]):
        with pytest.raises(Refused) as caught:
            list(ours.stream(pictures, dimensions=C + 1))
        assert (caught.value.code, caught.value.status) == ("invalid_request", 422)


def test_more_pictures_than_the_service_takes_at_once_go_in_parts(ours, url):
    limit = ours.info()["limits"]["max_images"]
    pictures = [*many(limit), b"no picture", A]
    with Client(url, batch_size=len(pictures)) as eager:
        results = list(eager.stream(pictures))
    assert results.pop(limit).code == "undecodable_image"
    np.testing.assert_allclose(results, ours.embed([*pictures[:limit], A]), atol=1e-5)


def test_regions_are_those_of_the_model(ours, url):
    found = ours.regions(SQUARE, normalize=False)
    np.testing.assert_allclose(
        found.features, expected(SQUARE)["regions"].reshape(-1, C), atol=1e-5
    )
    assert found.grid == (4, 4)
    assert found.boxes[0].tolist() == [2, 2, 10, 10]
    again = in_async(url, lambda client: client.regions(SQUARE, normalize=False))
    np.testing.assert_array_equal(again.features, found.features)


def test_correspondences_are_those_of_the_endpoint(ours, client):
    found = ours.correspond(SQUARE, OTHER, points=[(10, 10), (20.5, 9)], subcell=True)
    options = {"points": [[10, 10], [20.5, 9]], "subcell": True}
    matches = good(post_json(client, "/correspond", [A, B], **options))["matches"]
    assert found.query.tolist() == [0, 1]
    np.testing.assert_allclose(found.source, [match["source"] for match in matches], atol=1e-3)
    np.testing.assert_allclose(found.target, [match["target"] for match in matches], atol=1e-3)
    np.testing.assert_allclose(found.score, [match["score"] for match in matches], atol=1e-6)
    assert found.mutual.tolist() == [match["mutual"] for match in matches]


def test_attention_is_that_of_the_endpoint(ours, client):
    found = ours.attention(SQUARE, head="all", query=(10, 10))
    (image,) = good(post_json(client, "/attention", [A], head="all", query=[10, 10]))["images"]
    np.testing.assert_allclose(found, image["attention"], atol=1e-6)
    assert ours.attention(SQUARE).shape == (1, 4, 4)


def test_info_names_the_model(ours, url):
    assert ours.info()["model"] == "tiny"
    assert in_async(url, lambda client: client.info()) == ours.info()


def test_a_client_is_shared_by_threads(ours):
    pictures = many(8)
    alone = np.concatenate([ours.embed([picture]) for picture in pictures])
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda picture: ours.embed([picture])[0], pictures))
    np.testing.assert_allclose(found, alone, atol=1e-5)


@pytest.mark.parametrize("use", ["pass", "client.embed([sys.argv[2]])", "del client"])
def test_a_program_may_end_without_closing_its_client(url, tmp_path, use):
    (tmp_path / "a.png").write_bytes(A)
    program = f"import sys; from service.client import Client; client = Client(sys.argv[1]); {use}"
    command = [sys.executable, "-c", program, url, str(tmp_path / "a.png")]
    done = subprocess.run(command, timeout=60, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_client_may_be_closed_twice(url):
    with Client(url) as client:
        client.close()


def test_sizes_below_one_are_refused():
    with pytest.raises(ValueError, match="batch_size is 0"):
        AsyncClient(batch_size=0)


class Scripted(ThreadingHTTPServer):
    """Answers with one status after the other; None breaks the connection off."""

    def __init__(self, statuses, port=0, retry_after="0"):
        self.statuses = iter(statuses)
        self.retry_after = retry_after
        self.calls = []
        super().__init__(("127.0.0.1", port), _Handler)

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.server.calls.append(self.headers)
        status = next(self.server.statuses)
        if status is None:
            self.close_connection = True
            return
        self.send_response(status)
        self.send_header("Retry-After", self.server.retry_after)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def scripted(*statuses, **options):
    with Scripted(statuses, **options) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_busy_service_is_asked_again():
    with scripted(429, 503, 429, 200) as server, Client(server.url, retry=AT_ONCE) as ours:
        assert ours.info() == {}
        assert len(server.calls) == 4


def test_a_service_that_stays_busy_is_given_up():
    retry = Retry(attempts=3, first_wait_s=0.001)
    with scripted(*[503] * 9) as server, Client(server.url, retry=retry) as ours:
        with pytest.raises(Refused) as caught:
            ours.info()
        assert (caught.value.status, len(server.calls)) == (503, 3)


def test_who_is_asked_to_come_back_much_later_is_told_so_at_once():
    with scripted(429, retry_after="6") as server, Client(server.url, retry=AT_ONCE) as ours:
        with pytest.raises(Refused):
            ours.info()
        assert len(server.calls) == 1


@pytest.mark.parametrize("status", [400, 404, 408, 413, 422, 500, 502, 504])
def test_nothing_else_is_asked_again(status):
    with scripted(status, 200) as server, Client(server.url, retry=AT_ONCE) as ours:
        with pytest.raises(Refused) as caught:
            ours.info()
        assert (caught.value.status, len(server.calls)) == (status, 1)


def test_a_connection_that_breaks_off_is_not_asked_again():
    with scripted(None, 200) as server, Client(server.url, retry=AT_ONCE) as ours:
        with pytest.raises(httpx.TransportError):
            ours.info()
        assert len(server.calls) == 1


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_an_absent_service_is_given_up():
    retry = Retry(attempts=3, first_wait_s=0.001)
    url = f"http://127.0.0.1:{free_port()}"
    with Client(url, retry=retry) as ours, pytest.raises(httpx.ConnectError):
        ours.info()


def test_a_service_that_comes_back_is_found():
    port = free_port()
    retry = Retry(attempts=10_000, first_wait_s=0.01, longest_wait_s=0.05)
    with Client(f"http://127.0.0.1:{port}", retry=retry) as ours, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(ours.info)
        with scripted(200, port=port):
            assert waiting.result(timeout=60) == {}


def test_the_key_is_sent_as_a_bearer_token():
    with scripted(200, 200) as server:
        with Client(server.url, api_key="secret") as ours:
            ours.info()
        with Client(server.url) as ours:
            ours.info()
        assert [headers["authorization"] for headers in server.calls] == ["Bearer secret", None]

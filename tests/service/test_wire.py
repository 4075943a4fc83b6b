"""Connections that are slow, endless or broken, over real sockets."""

import json
import logging
import socket
import threading
import time

import pytest

from service.app import create_app
from tests.service.calls import post_raw
from tests.service.pictures import png, scene
from tests.service.server import read_until, serve

A = png(scene(36, 36))
SOON_S = 60.0
HEAD_BYTES = 2048


class Bugs(logging.Handler):
    """Keeps what is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture(scope="module")
def bugs():
    """Look for bugs in the log: nothing that a client does is one."""
    bugs = Bugs()
    logging.getLogger().addHandler(bugs)
    yield bugs.messages
    logging.getLogger().removeHandler(bugs)
    assert bugs.messages == []


@pytest.fixture(scope="module")
def strict(settings, bugs):
    limits = {
        "max_header_bytes": HEAD_BYTES,
        "header_timeout_s": 0.3,
        "send_timeout_s": 0.3,
        "max_connections": 5,
        "max_images": 64,
    }
    with serve(create_app(settings.model_copy(update=limits))) as client:
        yield client


def connect(client) -> socket.socket:
    connection = socket.create_connection((client.base_url.host, client.base_url.port))
    connection.settimeout(SOON_S)
    return connection


def talk(client, *pieces: bytes) -> bytes:
    """Send pieces, and give all that comes until the other side ends."""
    with connect(client) as connection:
        for piece in pieces:
            connection.sendall(piece)
        return read_until(connection, b"")


def refusal(answer: bytes) -> tuple[int, str]:
    """Hold the only answer of a connection against the shape of every refusal."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\nconnection: close" in head
    assert b"\r\ncontent-type: application/json\r\n" in head
    error = json.loads(body)["error"]
    assert f"x-request-id: {error['request_id']}".encode() in head
    return int(head.split()[1]), error["code"]


POST = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
GET = b"GET /livez HTTP/1.1\r\nHost: x\r\n"
LAST = GET + b"Connection: close\r\n\r\n"

SMUGGLED = {
    "length and chunks": POST + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "two lengths": POST + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n12345",
    "a signed length": POST + b"Content-Length: +5\r\n\r\n12345",
    "a length without end": POST + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n12345",
    "chunks within": POST + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "unknown coding": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "space before the colon": POST + b"Content-Length : 5\r\n\r\n12345",
    "a folded line": GET + b"A: b\r\n c\r\n\r\n",
    "bare line feeds": b"GET /livez HTTP/1.1\nHost: x\n\n",
    "a zero byte": GET + b"A: b\0c\r\n\r\n",
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a bad chunk": POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\nabc\r\n",
    "a chunk without end": POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"F" * 17 + b"\r\nabc",
    "two hosts": GET + b"Host: y\r\n\r\n",
    "the same host twice": GET + b"hOST: x\r\n\r\n",
    "no host": b"GET /livez HTTP/1.1\r\n\r\n",
    "a host that is none": b"GET /livez HTTP/1.1\r\nHost: x/y@z\r\n\r\n",
    "two hosts in a line": b"GET /livez HTTP/1.1\r\nHost: x y\r\n\r\n",
    "two hosts in HTTP/1.0": b"GET /livez HTTP/1.0\r\nHost: x\r\nHost: y\r\n\r\n",
    "CONNECT": b"CONNECT example.org:80 HTTP/1.1\r\nHost: x\r\n\r\n",
}


@pytest.mark.parametrize("sent", SMUGGLED.values(), ids=SMUGGLED)
def test_what_can_be_read_in_two_ways_is_refused_in_our_shape(strict, sent):
    assert refusal(talk(strict, sent)) == (400, "invalid_http")


@pytest.mark.parametrize("host", [b"x", b"", b"a-b.example.org:8000", b"[::1]:80", b"a_b", b"%C3"])
def test_one_host_is_answered(strict, host):
    sent = b"GET /livez HTTP/1.1\r\nConnection: close\r\nHost: " + host + b"\r\n\r\n"
    assert talk(strict, sent).startswith(b"HTTP/1.1 200 ")


def test_http_1_0_needs_no_host(strict):
    assert talk(strict, b"GET /livez HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize(("length", "status"), [(b"0" * 5000 + b"5", b"422"), (b"9" * 19, b"413")])
def test_a_length_of_very_many_digits_is_the_clients_fault(client, length, status):
    sent = POST + b"Connection: close\r\nContent-Length: " + length + b"\r\n\r\n12345"
    assert talk(client, sent).startswith(b"HTTP/1.1 " + status)


def head_of(size: int) -> bytes:
    """Give a request of so many bytes that ends the connection."""
    start, end = LAST[: -len(b"\r\n")] + b"a: ", b"\r\n\r\n"
    return start + b"b" * (size - len(start) - len(end)) + end


def test_a_head_of_the_limit_is_read_and_of_one_byte_more_refused(strict):
    assert talk(strict, head_of(HEAD_BYTES)).startswith(b"HTTP/1.1 200 ")
    assert refusal(talk(strict, head_of(HEAD_BYTES + 1))) == (431, "head_too_large")


def test_a_head_without_end_is_refused_while_it_comes(strict):
    with connect(strict) as connection:
        connection.sendall(GET + b"A: ")
        try:
            while True:
                connection.sendall(b"a" * 1000)
        except OSError:  # the service hung up
            pass
    assert strict.get("/livez").status_code == 200


def test_a_head_that_does_not_come_is_a_timeout(strict):
    assert refusal(talk(strict, GET)) == (408, "request_timeout")
    assert refusal(talk(strict, b"\r\n")) == (408, "request_timeout")


def test_who_says_nothing_is_hung_up_on_without_a_word(strict):
    assert talk(strict) == b""


def test_the_head_of_a_second_call_has_its_time_too(strict):
    first, _, second = talk(strict, GET + b"\r\n" + GET).partition(b'{"status":"alive"}')
    assert first.startswith(b"HTTP/1.1 200 ")
    assert refusal(second) == (408, "request_timeout")


def test_a_bad_target_behind_a_call_is_told_so(strict):
    answer = talk(strict, GET + b"\r\n" + b"GET http:///:x HTTP/1.1\r\nHost: x\r\n\r\n")
    first, _, second = answer.partition(b'{"status":"alive"}')
    assert first.startswith(b"HTTP/1.1 200 ")
    assert refusal(second) == (400, "invalid_http")


def test_calls_in_a_row_are_answered_in_order(strict):
    answer = talk(strict, GET + b"\r\n" + GET + b"\r\n" + LAST)
    assert answer.count(b"HTTP/1.1 200 ") == 3


@pytest.mark.parametrize("bad", [b"GET /livez HTTP/1.1\r\nno header\r\n\r\n", b"\0" * 3000])
def test_a_call_before_a_bad_one_gets_its_answer_first(strict, bad):
    whole = POST + b"Content-Length: %d\r\n\r\n" % len(A) + A
    answer = talk(strict, whole + GET + b"\r\n" + bad + GET + b"\r\n")
    first, _, rest = answer.partition(b'{"status":"alive"}')
    assert first.count(b"HTTP/1.1 200 ") == 2
    assert b'"embeddings":[[' in first
    assert refusal(rest) == (400, "invalid_http")


def test_a_call_before_one_of_a_bad_body_gets_its_answer_first(strict):
    chunked = POST + b"Transfer-Encoding: chunked\r\n\r\nZZ\r\n"
    answer = talk(strict, GET + b"\r\n" + chunked)
    first, _, second = answer.partition(b'{"status":"alive"}')
    assert first.startswith(b"HTTP/1.1 200 ")
    assert refusal(second) == (400, "invalid_http")


@pytest.mark.parametrize("kind", [b"h2c", b"websocket"])
def test_an_offer_of_another_protocol_is_ignored_and_the_body_read(strict, kind):
    offer = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: " + kind + b"\r\n"
    call = POST + offer + b"Content-Length: %d\r\n\r\n" % len(A) + A
    answer = talk(strict, call, LAST)
    assert answer.count(b"HTTP/1.1 200 ") == 2
    assert b'"embeddings":[[' in answer


def test_an_offer_of_another_protocol_is_ignored_wherever_it_is_cut(strict):
    offer = b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    call = POST + offer + b"Content-Length: %d\r\n\r\n" % len(A) + A
    for cut in (call.index(b"Upgrade: ") + 3, call.index(b"Upgrade: "), call.index(A) - 1):
        with connect(strict) as connection:
            connection.sendall(GET + b"\r\n" + call[:cut])
            time.sleep(0.02)
            connection.sendall(call[cut:] + LAST)
            answer = read_until(connection, b"")
        assert answer.count(b"HTTP/1.1 200 ") == 3
        assert b'"embeddings":[[' in answer


def test_a_body_that_looks_like_a_head_is_left_as_it_is(strict):
    form = b'--b\r\nContent-Disposition: form-data; name="fit"\r\nUpgrade: x\r\n\r\npad\r\n'
    form += b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n' + A
    form += b"\r\n--b--\r\n"
    head = b"POST /embed HTTP/1.1\r\nHost: x\r\nContent-Type: multipart/form-data; boundary=b\r\n"
    call = head + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(form) + form
    for cut in (0, call.index(b"--b") - 1, call.index(b"Upgrade")):
        assert talk(strict, call[:cut], call[cut:]).startswith(b"HTTP/1.1 200 ")


def chunked(body: bytes, trailers: bytes, head: bytes = POST) -> bytes:
    start = head + b"Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    return start + b"%x\r\n" % len(body) + body + b"\r\n0\r\n" + trailers + b"\r\n"


@pytest.mark.parametrize(
    "trailer",
    [b"Content-Encoding: gzip", b"Host: y", b"Accept: application/x-npy", b"X-Request-Id: q"],
)
@pytest.mark.parametrize("is_later", [False, True])
def test_lines_behind_a_chunked_body_are_no_headers(strict, trailer, is_later):
    call = chunked(A, trailer + b"\r\n")
    cut = call.index(trailer) if is_later else 0
    answer = talk(strict, call[:cut], call[cut:])
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b'"embeddings":[[' in answer
    assert b"x-request-id: q\r\n" not in answer


@pytest.mark.parametrize("line", [b"a: " + b"b" * 90 + b"\r\n", b"c" * 100])
def test_lines_behind_a_chunked_body_have_the_bound_of_a_head(strict, line):
    fits = chunked(A, b"a: " + b"b" * (HEAD_BYTES - 7) + b"\r\n")
    assert talk(strict, fits).startswith(b"HTTP/1.1 200 ")
    with connect(strict) as connection:
        connection.sendall(chunked(A, b"")[:-2])
        for _ in range(HEAD_BYTES // len(line) + 1):
            connection.sendall(line)
        assert refusal(read_until(connection, b"")) == (431, "head_too_large")


def test_calls_in_a_row_without_end_are_started_one_by_one(strict):
    num_calls = 3000
    with connect(strict) as connection:
        sender = threading.Thread(
            target=connection.sendall, args=((GET + b"\r\n") * num_calls + LAST,)
        )
        sender.start()
        answer = read_until(connection, b"")
        sender.join()
    assert answer.count(b"HTTP/1.1 200 ") == num_calls + 1


def test_a_call_answered_before_its_body_came_leaves_no_connection_open(settings, monkeypatch):
    monkeypatch.setattr("service.__main__.KEEP_ALIVE_S", 0.3)
    with serve(create_app(settings)) as client, connect(client) as connection:
        connection.sendall(b"POST /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n")
        assert read_until(connection, b"}}").startswith(b"HTTP/1.1 404 ")
        connection.sendall(b"0123456789")
        assert read_until(connection, b"") == b""  # it goes the way of every idle one


def test_a_bad_body_of_a_call_that_has_its_answer_gets_no_second_one(strict):
    with connect(strict) as connection:
        connection.sendall(
            b"POST /nowhere HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        answer = read_until(connection, b"}}")
        assert answer.startswith(b"HTTP/1.1 404 ")
        connection.sendall(b"ZZ\r\n")
        assert read_until(connection, b"") == b""


def test_the_client_of_a_refused_body_sees_the_refusal_and_may_go_on(strict):
    size = 20_000_001
    with connect(strict) as connection:
        connection.sendall(POST + b"Content-Length: %d\r\n\r\n" % size)
        for _ in range(20):
            connection.sendall(bytes(1_000_000))
        connection.sendall(b"x" + LAST)
        answer = read_until(connection, b"")
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert answer.endswith(b'{"status":"alive"}')


def test_the_rest_of_a_refused_body_is_not_awaited_for_ever(strict, monkeypatch):
    monkeypatch.setattr("service.wire.LINGER_S", 0.2)
    answer = talk(strict, POST + b"Content-Length: 30000000\r\n\r\nabc")
    assert answer.startswith(b"HTTP/1.1 413 ")


def test_a_client_that_takes_nothing_of_its_answer_is_hung_up_on(strict):
    body = b"".join(
        b"--b\r\nContent-Disposition: form-data; name=f; filename=a\r\n\r\n" + A + b"\r\n"
        for _ in range(64)
    )
    body += b"--b--\r\n"
    head = b"POST /attention?head=all HTTP/1.1\r\nHost: x\r\n"
    head += b"Content-Type: multipart/form-data; boundary=b\r\n"
    call = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.settimeout(SOON_S)
        connection.connect((strict.base_url.host, strict.base_url.port))
        with pytest.raises(ConnectionError):
            send_for_ever(connection, call)
    assert strict.get("/livez").status_code == 200


def send_for_ever(connection: socket.socket, call: bytes) -> None:
    """Call and call again without reading an answer."""
    while True:
        connection.sendall(call)


def test_one_connection_more_than_the_limit_is_told_so(strict):
    strict.get("/livez", headers={"connection": "close"})
    held = []
    try:
        while len(held) < 5:
            connection = connect(strict)
            connection.sendall(GET + b"\r\n")
            assert read_until(connection, b'"alive"}').startswith(b"HTTP/1.1 200 ")
            held.append(connection)
        assert refusal(talk(strict)) == (503, "too_many_connections")
        upload = POST + b"Content-Length: 2000000\r\n\r\n" + bytes(2_000_000)
        assert refusal(talk(strict, upload)) == (503, "too_many_connections")
    finally:
        for connection in held:
            connection.close()


def test_after_all_that_a_good_call_is_answered(strict):
    assert post_raw(strict, "/embed", A).status_code == 200

"""A server that should not be reached, or only under rules: it counts who comes."""

import ssl
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Canary(ThreadingHTTPServer):
    """Serves `picture` under `/picture`, and what clients must be kept from under other paths."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], picture: bytes) -> None:
        super().__init__(address, _Handler)
        self.picture = picture
        self.asked: list[str] = []
        self.hosts: list[str] = []
        self.headers: list[dict] = []

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of callers that have gone, as those with a deadline do."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: Canary

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.hosts.append(self.headers["host"])
        self.server.headers.append(dict(self.headers))
        path, _, argument = self.path.lstrip("/").partition("?")
        getattr(self, f"give_{path}", self.give_nothing)(argument)

    def give_picture(self, _: str) -> None:
        self.answer(200, self.server.picture)

    def give_to(self, location: str) -> None:
        self.answer(302, b"", {"Location": location, "Set-Cookie": "a=b"})

    def give_chain(self, left: str) -> None:
        self.give_to(f"/chain?{int(left) - 1}" if int(left) else "/picture")

    def give_zeros(self, count: str) -> None:
        self.answer(200, bytes(int(count)))

    def give_endless(self, _: str) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(65536))
        except OSError:
            pass

    def give_slow(self, seconds: str) -> None:
        time.sleep(float(seconds))
        self.answer(200, self.server.picture)

    def give_packed(self, _: str) -> None:
        self.answer(200, self.server.picture, {"Content-Encoding": "gzip"})

    def give_nothing(self, _: str) -> None:
        self.answer(404, b"the canary's secret")

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def canary(
    picture: bytes, host: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[Canary]:
    """Serve while the block runs, over TLS if there is a context."""
    server = Canary((host, port), picture)
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

"""The service on a free port of this machine, in a thread: real HTTP, no process to wait for."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from starlette.types import ASGIApp


class _Server(uvicorn.Server):
    """Uvicorn that says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()


@contextmanager
def serve(app: ASGIApp) -> Iterator[httpx.Client]:
    """Serve an application while the block runs, and give a client of it."""
    config = uvicorn.Config(
        app, port=0, loop="uvloop", http="httptools", log_config=None, access_log=False
    )
    server = _Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.listens.wait(timeout=10)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join()


def read_until(connection: socket.socket, ending: bytes) -> bytes:
    """Read from a connection until so it ends, or until the other side ends it."""
    answer = b""
    while not (ending and answer.endswith(ending)) and (piece := connection.recv(65536)):
        answer += piece
    return answer

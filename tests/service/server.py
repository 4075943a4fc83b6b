"""The service on a free port of this machine, in a thread: real HTTP, no process to wait for."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import uvicorn
from fastapi import FastAPI

from service.__main__ import server_config


class _Server(uvicorn.Server):
    """Uvicorn that says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listens = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listens.set()


@contextmanager
def run(config: uvicorn.Config) -> Iterator[int]:
    """Run a server while the block runs, and give its port."""
    server = _Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        assert server.listens.wait(timeout=10)
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serve(app: FastAPI) -> Iterator[httpx.Client]:
    """Serve an application while the block runs as the command does, and give a client of it."""
    settings = app.state.pipeline.settings.model_copy(update={"port": 0})
    with (
        run(server_config(app, settings)) as port,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client,
    ):
        yield client


def read_until(connection: socket.socket, ending: bytes) -> bytes:
    """Read from a connection until so it ends, or until the other side ends it."""
    answer = b""
    while not (ending and answer.endswith(ending)) and (piece := connection.recv(65536)):
        answer += piece
    return answer

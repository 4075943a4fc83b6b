"""Command: serve a model file over HTTP.

Exit codes: 0 after a shutdown that was asked for, 2 for bad settings and for an address that is
taken, 3 if the model cannot be served.
"""

import asyncio
import ctypes
import gc
import logging
import signal
import socket
import sys
from functools import partial
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.app import create_app
from service.command_line import (
    BadSettings,
    check_address,
    read_settings,
    warn_of_unknown_variables,
)
from service.errors import ModelError
from service.logs import set_up_logging
from service.parity import PHOTOGRAPHS
from service.reload import Reloader
from service.settings import Settings
from service.wire import Protocol, WireLimits

logger = logging.getLogger(__name__)

KEEP_ALIVE_S = 75
"""Longer than the minute that load balancers keep idle connections."""

SWITCH_INTERVAL_S = 0.0002
"""How soon a thread that runs Python lets another: an engine's, back from a run, idles meanwhile.

At Python's own 5 ms the cores of a busy service idled 0.5 % of the time, at this 0.2 %.
"""

M_MMAP_THRESHOLD = -3
"""As in glibc's malloc.h."""

LARGE_BLOCK_BYTES = 1 << 19
"""Pillow's large pictures are made of blocks of at least this size (`service.images`)."""


class Server(uvicorn.Server):
    """Uvicorn that tells the application when a shutdown begins, and ends it with exit code 0."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Take SIGHUP for a new model file, listen, and say what to try first."""
        app = self.config.app
        assert isinstance(app, FastAPI)
        if hasattr(signal, "SIGHUP"):  # not on Windows
            reloader: Reloader = app.state.reloader
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, reloader.ask)
        await super().startup(sockets)
        port = self.servers[0].sockets[0].getsockname()[1]
        keys = app.state.pipeline.settings.keys()
        logger.info("try: %s", first_call(port, asks_for_key=bool(keys)))

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: not ready any more, finish what was accepted, end."""
        app = self.config.app
        assert isinstance(app, FastAPI)
        app.state.pipeline.is_draining = True
        super().handle_exit(sig, frame)
        self._captured_signals.clear()  # else uvicorn raises them again, and the exit is not 0


def first_call(port: int, *, asks_for_key: bool) -> str:
    """Write a call that can be typed here."""
    picture = Path("picture.jpg")
    if Path("service/photographs").is_dir():  # in a checkout
        picture = PHOTOGRAPHS[0].relative_to(Path.cwd())
    key = "-H 'Authorization: Bearer KEY' " if asks_for_key else ""
    return f"curl {key}-F file=@{picture} http://127.0.0.1:{port}/embed"


def main() -> int:
    """Serve until told to stop."""
    try:
        settings = read_settings(sys.argv[1:])
        check_address(settings.host, settings.port)
    except BadSettings as error:
        print(error, file=sys.stderr)  # noqa: T201  # before the log is set up
        return 2
    set_up_logging(settings.log_level, settings.log_format)
    warn_of_unknown_variables()
    give_back_large_blocks()
    try:
        app = create_app(settings)
    except ModelError as error:
        print(" ".join(str(error).split()), file=sys.stderr)  # noqa: T201  # the command's answer
        return 3
    serve(app, settings)
    return 0


def give_back_large_blocks() -> None:
    """Let the C library return large blocks when they are freed, instead of keeping them.

    glibc keeps them for the thread that asked: after some large pictures each decoder would hold as
    much as the largest of its own. Of small pictures Pillow keeps the blocks itself.
    """
    if sys.platform.startswith("linux"):
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc's; musl has none
        if mallopt is not None:
            mallopt(M_MMAP_THRESHOLD, LARGE_BLOCK_BYTES)


def serve(app: FastAPI, settings: Settings) -> None:
    """Listen and answer until told to stop."""
    gc.collect()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.freeze()  # what is loaded by now stays: no collection need look at it again
    Server(server_config(app, settings)).run()


def server_config(app: FastAPI, settings: Settings) -> uvicorn.Config:
    """Say how the application is served."""
    limits = WireLimits(
        max_connections=settings.max_connections,
        max_header_bytes=settings.max_header_bytes,
        header_timeout_s=settings.header_timeout_s,
        send_timeout_s=settings.send_timeout_s,
    )
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        loop="uvloop",
        http=partial(Protocol, limits, app.state.pipeline.metrics, set()),  # type: ignore[arg-type]  # makes a protocol
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.shutdown_grace_s,
    )


if __name__ == "__main__":
    sys.exit(main())

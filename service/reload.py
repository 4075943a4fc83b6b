"""A new model file takes the old one's place, and no call is dropped.

A call keeps the pipeline that it began with, to its end. The new pipeline is loaded and checked
beside the old one, in a thread, and then takes all calls that begin; when the last call of the old
one has ended, so do its threads, and its memory is released. A file that cannot be served leaves
everything as it was.
"""

import asyncio
import gc
import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import anyio.to_thread
from starlette.datastructures import State
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import ModelError
from service.pipeline import Pipeline

logger = logging.getLogger(__name__)


class Signature(NamedTuple):
    """What changes when a file does, whether it was written over or replaced."""

    inode: int
    mtime_ns: int
    num_bytes: int


class Leases:
    """The ASGI layer that gives each call the pipeline it keeps, as `request.state.pipeline`."""

    def __init__(self, app: ASGIApp) -> None:
        """Wrap an application that has its pipeline as `app.state.pipeline`."""
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        pipeline: Pipeline = scope["app"].state.pipeline
        scope.setdefault("state", {})["pipeline"] = pipeline
        pipeline.enter()
        try:
            await self._app(scope, receive, send)
        finally:
            del scope["state"]["pipeline"]  # a connection keeps the scope of its last call
            pipeline.leave()


class Reloader:
    """Puts a new pipeline in the place of the one that serves."""

    def __init__(
        self, state: State, path: Path, load: Callable[[], Pipeline], *, every_s: float
    ) -> None:
        """Load what is served first.

        Args:
            state: Its `pipeline` is what calls that begin are given.
            path: The model file.
            load: Loads and checks the file, in a worker thread.
            every_s: Seconds between two looks at the file; 0: it is looked at when asked.

        Raises:
            ModelError: if the model cannot be served.
        """
        self._state = state
        self._path = path
        self._load = load
        self._every_s = every_s
        self._tried = sign(path)  # before it is read: a change while it is read is seen later
        state.pipeline = load()
        self._is_asked = asyncio.Event()
        self._retiring: set[asyncio.Task[None]] = set()
        self.loaded_at = datetime.now(UTC)
        self.failed_at: datetime | None = None

    def ask(self) -> None:
        """Have the file loaded again, changed or not; to be called on the event loop."""
        self._is_asked.set()

    async def watch(self) -> None:
        """Reload when asked, or when the file has changed and then stood still."""
        seen = self._tried
        while True:
            try:
                async with asyncio.timeout(self._every_s or None):
                    await self._is_asked.wait()
            except TimeoutError:
                last, seen = seen, sign(self._path)
                if seen == self._tried or seen != last:
                    continue
            self._is_asked.clear()
            await self.reload()

    async def reload(self) -> None:
        """Load the file and swap, or say why not."""
        self._tried = sign(self._path)
        try:
            pipeline = await anyio.to_thread.run_sync(self._load)
            if sign(self._path) != self._tried:
                raise ModelError("the model file changed while it was loaded")
            self._swap(pipeline)
        except Exception as error:  # a bad file must not take down what serves
            self._refuse(error)

    async def close(self) -> None:
        """End the threads of all pipelines, when no call is under way any more."""
        await asyncio.gather(*self._retiring)
        await self._state.pipeline.retire()

    def _swap(self, pipeline: Pipeline) -> None:
        """Give the new pipeline to the calls that begin, and let the old one finish."""
        old: Pipeline = self._state.pipeline
        pipeline.start()
        self._state.pipeline = pipeline
        pipeline.is_draining |= old.is_draining  # a signal may have come meanwhile
        pipeline.metrics.reloads.labels("swapped").inc()
        self.loaded_at, self.failed_at = datetime.now(UTC), None
        logger.info("now serving %s, no more %s", pipeline.info.name, old.info.name)
        retiring = asyncio.create_task(_let_go(old))
        self._retiring.add(retiring)
        retiring.add_done_callback(self._retiring.discard)

    def _refuse(self, error: Exception) -> None:
        """Say that the old model goes on serving, and why."""
        pipeline: Pipeline = self._state.pipeline
        pipeline.metrics.reloads.labels("refused").inc()
        self.failed_at = datetime.now(UTC)
        known = isinstance(error, ModelError)
        reason = " ".join(str(error).split()) if known else type(error).__name__
        text = "still serving %s: the new model file cannot be served: %s"
        logger.error(text, pipeline.info.name, reason, exc_info=None if known else error)


async def _let_go(pipeline: Pipeline) -> None:
    """Wait for a pipeline's last call, and release the memory of its model.

    Errors and the frames that raised them hold each other, and the model with them. Left to itself
    the collector would come by after several models.
    """
    await pipeline.retire()
    del pipeline
    gc.collect()


def sign(path: Path) -> Signature | None:
    """Give a file's signature; None if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return Signature(found.st_ino, found.st_mtime_ns, found.st_size)

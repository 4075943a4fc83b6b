"""A batcher under a fake engine that a test can hold, and what is asked of it."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import asynccontextmanager

import numpy as np

from service.batcher import Batcher, Sizes
from service.errors import UndecodableImage
from service.metrics import Metrics
from service.preprocess import Geometry, Preprocessed

GEOMETRY = Geometry(2, 2, 0.0, 0.0, 1.0, 1.0)
SOON_S = 20.0
"""Longer than anything here takes; only a failing test waits so long."""


class FakeEngine:
    """Gives each picture's first value; can be held, and notes what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[list[int], list[str]]] = []
        self.is_running = threading.Semaphore(0)
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def __call__(self, pixels, outputs: Sequence[str], *, is_alone: bool):
        values = pixels[:, 0, 0, 0].astype(np.float32)
        self.calls.append((pixels[:, 0, 0, 0].tolist(), list(outputs)))
        self.is_running.release()
        assert self.may_go_on.wait(SOON_S)
        if 255 in values:
            raise RuntimeError("the engine is out of order")
        vector = np.stack([values, 2 * values], axis=1)
        arrays = {"embedding": vector, "regions": vector[:, None]}
        return {name: arrays[name] for name in outputs}


def image(value: int) -> Callable[[], Preprocessed]:
    return lambda: Preprocessed(np.full((2, 2, 3), value, np.uint8), GEOMETRY)


def bad_image() -> Preprocessed:
    raise UndecodableImage("not an image")


def values(results) -> list[float]:
    return [float(result.arrays["embedding"][0]) for result in results]


def sizes(**changes) -> Sizes:
    return Sizes(num_decoders=2, num_runners=1, max_batch=8, max_queue_images=64)._replace(
        **changes
    )


@asynccontextmanager
async def running(engine, **changes):
    metrics = Metrics()
    batcher = Batcher(engine, sizes(**changes), metrics)
    batcher.start()
    try:
        yield batcher, metrics.registry.get_sample_value
    finally:
        if isinstance(engine, FakeEngine):
            engine.may_go_on.set()
        await asyncio.to_thread(batcher.stop)


def submit(batcher, *prepares, outputs=("embedding",), timeout_s=SOON_S):
    return asyncio.create_task(batcher.submit(prepares, outputs, timeout_s))


async def wait_until_running(engine: FakeEngine) -> None:
    """Wait until the engine has begun one more run."""
    assert await asyncio.to_thread(engine.is_running.acquire, timeout=SOON_S)


@asynccontextmanager
async def busy(engine: FakeEngine, batcher: Batcher):
    """Hold the engine in a run of image 1 while the block runs."""
    engine.may_go_on.clear()
    first = submit(batcher, image(1))
    await wait_until_running(engine)
    yield first
    engine.may_go_on.set()


async def decoded(sample, count: int) -> None:
    """Wait until so many images are decoded and wait for the engine."""
    async with asyncio.timeout(SOON_S):
        while sample("esvit_queue_images") != count:
            await asyncio.sleep(0)  # the decoders are threads: let them, and look again

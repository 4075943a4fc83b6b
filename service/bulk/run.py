"""Embedding shards: files are read ahead and several batches are with the embedder at once."""

import errno
import logging
import time
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

from service.bulk.embedder import BatchEmbedder, Columns
from service.bulk.listing import Place
from service.bulk.shards import Shards

logger = logging.getLogger(__name__)

BATCH_IMAGES = 16
"""Pictures that one thread reads and hands over at once."""

BATCHES_UNDER_WAY = 4
"""Enough that the engine finds work while the next files are read and a shard is written."""


OF_A_FILE = frozenset(
    (
        None,  # our own: too large, or cut
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.EACCES,
        errno.EPERM,
        errno.ELOOP,
        errno.ENAMETOOLONG,
    )
)
"""What is wrong with one file. All else is wrong with what it lies on, and no reason to go on."""

WAITS_S = (0.1, 1.0, 5.0)
"""How long what files lie on is waited for before it is asked again."""


class Done(NamedTuple):
    """How many pictures have been embedded by a step, and how many of them have failed."""

    num_images: int
    num_failed: int


class Chunk(NamedTuple):
    """Some pictures of a shard, and whether they are its last."""

    shard: int
    places: list[Place]
    is_last: bool


def embed_shards(embedder: BatchEmbedder, shards: Shards, numbers: Iterable[int]) -> Iterator[Done]:
    """Embed some shards and write each when it is complete; the engine never waits between them.

    Yields:
        What was done, after every batch of pictures.
    """
    batches: list[Columns] = []
    for chunk, columns in _embed_chunks(embedder, _chunks(shards, numbers)):
        batches.append(columns)
        if chunk.is_last:
            shards.write(chunk.shard, batches)
            batches = []
        yield Done(len(columns["path"]), int((columns["error"] != "").sum()))


def _chunks(shards: Shards, numbers: Iterable[int]) -> Iterator[Chunk]:
    """Cut shards into chunks."""
    for number in numbers:
        first, end = shards.span(number)
        for start in range(first, end, BATCH_IMAGES):
            stop = min(start + BATCH_IMAGES, end)
            yield Chunk(number, shards.listing.places(start, stop), stop == end)


def _embed_chunks(
    embedder: BatchEmbedder, chunks: Iterable[Chunk]
) -> Iterator[tuple[Chunk, Columns]]:
    """Embed chunks, several at once, in order."""
    pending: deque[tuple[Chunk, Future[Columns]]] = deque()
    with ThreadPoolExecutor(BATCHES_UNDER_WAY) as pool:
        try:
            for chunk in chunks:
                pending.append((chunk, pool.submit(_embed, embedder, chunk.places)))
                if len(pending) > BATCHES_UNDER_WAY:
                    first, future = pending.popleft()
                    yield first, future.result()
            for chunk, future in pending:
                yield chunk, future.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _read(place: Place) -> bytes:
    """Read a picture's file; what it lies on may need some time.

    Raises:
        OSError: as `Place.read`.
    """
    for wait_s in WAITS_S:
        try:
            return place.read()
        except OSError as error:
            if error.errno in OF_A_FILE:
                raise
            logger.warning("%s: %s; trying again in %g s", place.file, error.strerror, wait_s)
            time.sleep(wait_s)
    return place.read()


def _embed(embedder: BatchEmbedder, places: list[Place]) -> Columns:
    """Read and embed a batch; a file that cannot be read is a failure like any other.

    Raises:
        OSError: if not the file is at fault, but what it lies on.
    """
    problems: dict[int, str] = {}
    files = []
    for row, place in enumerate(places):
        try:
            files.append(_read(place))
        except OSError as error:
            if error.errno not in OF_A_FILE:
                raise
            problems[row] = error.strerror or str(error)
            files.append(b"")
    # Parquet holds text; where a name is none, a sign stands for what cannot be shown.
    paths = [
        place.name.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for place in places
    ]
    columns = embedder({"path": paths, "bytes": files})
    for row, problem in problems.items():
        columns["error"][row], columns["message"][row] = "unreadable_file", problem
    return columns

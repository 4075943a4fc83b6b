"""Python clients of the service: pictures in, NumPy arrays out.

    from service.client import Client

    with Client("http://127.0.0.1:8000") as client:
        vectors = client.embed(["a.jpg", "b.jpg"])  # (2, C)
        for vector in client.stream(paths):  # of millions, in order
            ...

`Client` is `AsyncClient` for programs without an event loop; the loop runs in a thread of its own.
A client may be shared by threads and kept for good: it is closed with the program at the latest.
"""

import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import ExitStack
from functools import partial
from types import TracebackType
from typing import Any, Self

from anyio.from_thread import start_blocking_portal

from service import calls
from service.calls import (
    Array,
    EmbedOutput,
    Fit,
    Head,
    Matches,
    Picture,
    Point,
    Refused,
    Regions,
)
from service.client_async import AsyncClient
from service.retry import PATIENT, Retry

__all__ = ["AsyncClient", "Client", "Matches", "Picture", "Refused", "Regions", "Retry"]


class Client:
    """The service, for programs without an event loop; see `AsyncClient` for what is raised."""

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        timeout_s: float = 60.0,
        batch_size: int = 16,
        concurrency: int = 4,
        retry: Retry = PATIENT,
    ) -> None:
        """Set up; nothing is sent yet. The arguments are those of `AsyncClient`."""
        self._client = AsyncClient(
            url,
            api_key=api_key,
            timeout_s=timeout_s,
            batch_size=batch_size,
            concurrency=concurrency,
            retry=retry,
        )
        context = ExitStack()
        self._portal = context.enter_context(start_blocking_portal())
        context.callback(self._portal.call, self._client.aclose)
        self._close = weakref.finalize(self, context.close)  # at exit too, while threads still run

    def embed(
        self,
        pictures: Iterable[Picture],
        *,
        output: EmbedOutput = "embedding",
        normalize: bool = True,
        dimensions: int | None = None,
        fit: Fit = "crop",
    ) -> Array:
        """Give the vectors of some pictures: (N, C) float32; see `AsyncClient.embed`."""
        fields = calls.embed_fields(output, normalize, dimensions, fit)
        return calls.stack(self._stream(pictures, fields))

    def stream(
        self,
        pictures: Iterable[Picture],
        *,
        output: EmbedOutput = "embedding",
        normalize: bool = True,
        dimensions: int | None = None,
        fit: Fit = "crop",
    ) -> Iterator[Array | Refused]:
        """Give one picture's vector (C,) after the other, or in its place why it was refused.

        Pictures are taken from the iterable in the caller's own thread, as they are needed; at
        most `concurrency + 1` batches are in memory. See `AsyncClient.stream`.
        """
        return self._stream(pictures, calls.embed_fields(output, normalize, dimensions, fit))

    def regions(self, picture: Picture, *, normalize: bool = True, fit: Fit = "crop") -> Regions:
        """Give a picture's regions; see `AsyncClient.regions`."""
        ask = partial(self._client.regions, picture, normalize=normalize, fit=fit)
        return self._portal.call(ask)

    def correspond(
        self,
        source: Picture,
        target: Picture,
        *,
        points: Sequence[Point] | None = None,
        subcell: bool = False,
        fit: Fit = "crop",
    ) -> Matches:
        """Find regions or points of one picture in another; see `AsyncClient.correspond`."""
        ask = partial(
            self._client.correspond, source, target, points=points, subcell=subcell, fit=fit
        )
        return self._portal.call(ask)

    def attention(
        self,
        picture: Picture,
        *,
        head: Head = "mean",
        query: Point | None = None,
        fit: Fit = "crop",
    ) -> Array:
        """Give attention maps, (heads, rows, columns); see `AsyncClient.attention`."""
        return self._portal.call(
            partial(self._client.attention, picture, head=head, query=query, fit=fit)
        )

    def info(self) -> dict[str, Any]:
        """Give what the service says of itself."""
        return self._portal.call(self._client.info)

    def close(self) -> None:
        """Close the connections and end the thread; nothing if that was done before."""
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _stream(
        self, pictures: Iterable[Picture], fields: calls.Fields
    ) -> Iterator[Array | Refused]:
        """Keep `concurrency` batches under way; see `stream`."""
        pending: deque[Future[list[Array | Refused]]] = deque()
        try:
            for batch in calls.batches(pictures, self._client.batch_size):
                ask = partial(self._client.embed_batch, batch, fields)
                pending.append(self._portal.start_task_soon(ask))
                if len(pending) >= self._client.concurrency:
                    yield from pending.popleft().result()
            while pending:
                yield from pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()

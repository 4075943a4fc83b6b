"""The asynchronous client; `service.client` has it by the name of `AsyncClient`."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import anyio.to_thread
import httpx
import orjson

from service import calls
from service.calls import (
    Array,
    Call,
    EmbedOutput,
    Fields,
    Fit,
    Head,
    Matches,
    Picture,
    Point,
    Refused,
    Regions,
)
from service.retry import PATIENT, Retry

PASSING = frozenset((429, 503))
"""Statuses that say: later."""


class AsyncClient:
    """The service, for programs with an event loop of asyncio."""

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
        """Set up; nothing is sent yet.

        Args:
            url: Where the service is.
            api_key: Sent as bearer token, if given.
            timeout_s: Seconds that any one step of a call may take.
            batch_size: Pictures a call of `embed` and `stream` at most.
            concurrency: Calls under way at once.
            retry: How a busy or absent service is tried again.
        """
        if batch_size < 1 or concurrency < 1:
            raise ValueError(f"batch_size is {batch_size}, concurrency {concurrency}, expected 1+")
        self.batch_size = batch_size
        self.concurrency = concurrency
        self._retry = retry
        headers = {} if api_key is None else {"authorization": f"Bearer {api_key}"}
        self._http = httpx.AsyncClient(base_url=url, headers=headers, timeout=timeout_s)

    async def embed(
        self,
        pictures: Iterable[Picture],
        *,
        output: EmbedOutput = "embedding",
        normalize: bool = True,
        dimensions: int | None = None,
        fit: Fit = "crop",
    ) -> Array:
        """Give the vectors of some pictures.

        Args:
            pictures: Paths, bytes of files, PIL images or arrays.
            output: Pooled features of the last stage, or of the last four blocks.
            normalize: Divide by the L2 norm.
            dimensions: Keep only the first so many numbers.
            fit: What of the picture the model sees.

        Returns:
            (N, C) float32, in the order of the pictures.

        Raises:
            Refused: if the service refuses the call or any picture.
            httpx.TransportError: if the service cannot be reached, or not in time.
        """
        fields = calls.embed_fields(output, normalize, dimensions, fit)
        return calls.stack([vector async for vector in self._stream(pictures, fields)])

    def stream(
        self,
        pictures: Iterable[Picture],
        *,
        output: EmbedOutput = "embedding",
        normalize: bool = True,
        dimensions: int | None = None,
        fit: Fit = "crop",
    ) -> AsyncIterator[Array | Refused]:
        """Give one picture's vector after the other, in order, while further ones are under way.

        Pictures are taken as they are needed, in a worker thread, so a generator of millions is
        fine: at most `concurrency + 1` batches are in memory. The arguments are those of `embed`.

        Yields:
            (C,) float32, or in the place of a picture that was refused, why.

        Raises:
            Refused: if the service refuses a call as a whole.
            httpx.TransportError: if the service cannot be reached, or not in time.
        """
        return self._stream(pictures, calls.embed_fields(output, normalize, dimensions, fit))

    async def regions(
        self, picture: Picture, *, normalize: bool = True, fit: Fit = "crop"
    ) -> Regions:
        """Give a picture's regions, each L2-normalised unless asked otherwise.

        Raises:
            Refused: if the service refuses the picture.
        """
        fields = {"normalize": normalize, "fit": fit}
        return calls.read_regions(await self._ask("/regions", {"file": picture}, fields))

    async def correspond(
        self,
        source: Picture,
        target: Picture,
        *,
        points: Sequence[Point] | None = None,
        subcell: bool = False,
        fit: Fit = "crop",
    ) -> Matches:
        """Find the regions of one picture, or points of it in pixels, in another.

        Raises:
            Refused: if the service refuses a picture or a point.
        """
        fields: dict[str, object] = {"subcell": subcell, "fit": fit}
        if points is not None:
            fields["points"] = [[float(x), float(y)] for x, y in points]
        pictures = {"source": source, "target": target}
        return calls.read_matches(await self._ask("/correspond", pictures, fields))

    async def attention(
        self,
        picture: Picture,
        *,
        head: Head = "mean",
        query: Point | None = None,
        fit: Fit = "crop",
    ) -> Array:
        """Give the attention of the last block from a point in pixels, or pooled.

        Returns:
            (heads, rows, columns) float32; one head unless all are asked for.

        Raises:
            Refused: if the service refuses the picture, the head or the point.
        """
        fields: dict[str, object] = {"head": head, "fit": fit}
        if query is not None:
            fields["query"] = [float(query[0]), float(query[1])]
        return calls.read_attention(await self._ask("/attention", {"file": picture}, fields))

    async def info(self) -> dict[str, Any]:
        """Give what the service says of itself: model, outputs, engine, limits."""
        return await self._send(Call("/info", (), {}))

    async def embed_batch(
        self, batch: Sequence[bytes | Refused], fields: Fields
    ) -> list[Array | Refused]:
        """Send one batch of files, as `calls.batches` gives them; see `stream`.

        A batch of more pictures than the service takes at once goes in halves.
        """
        call = calls.embed_call(batch, fields)
        try:
            answer = await self._send(call) if call else {"errors": [], "embeddings": []}
        except Refused as error:
            if error.code == "batch_too_large" and len(batch) > 1:
                middle = len(batch) // 2
                halves = (batch[:middle], batch[middle:])
                return [one for half in halves for one in await self.embed_batch(half, fields)]
            if call and len(call.files) == 1 and error.code in calls.OF_A_PICTURE:
                return [file if isinstance(file, Refused) else error for file in batch]
            raise
        return calls.read_embeddings(batch, answer)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def _stream(
        self, pictures: Iterable[Picture], fields: Fields
    ) -> AsyncIterator[Array | Refused]:
        """Keep `concurrency` batches under way; see `stream`."""
        batches = calls.batches(pictures, self.batch_size)
        pending: deque[asyncio.Task[list[Array | Refused]]] = deque()
        try:
            while batch := await anyio.to_thread.run_sync(next, batches, None):
                pending.append(asyncio.create_task(self.embed_batch(batch, fields)))
                if len(pending) >= self.concurrency:
                    for result in await pending.popleft():
                        yield result
            while pending:
                for result in await pending.popleft():
                    yield result
        finally:
            for task in pending:
                task.cancel()

    async def _ask(
        self, path: str, pictures: Mapping[str, Picture], fields: Fields
    ) -> dict[str, Any]:
        """Send the pictures of one call, whole or not at all."""
        files = [
            (name, await anyio.to_thread.run_sync(calls.as_file, picture))
            for name, picture in pictures.items()
        ]
        return await self._send(Call(path, files, {"encoding_format": "base64", **fields}))

    async def _send(self, call: Call) -> dict[str, Any]:
        """Send a call until it is answered or refused for good."""
        attempt = 1
        while (response := await self._try(call, attempt)) is None:
            attempt += 1
        if response.status_code != 200:
            raise calls.read_refusal(response.status_code, response.content)
        answer: dict[str, Any] = orjson.loads(response.content)
        return answer

    async def _try(self, call: Call, attempt: int) -> httpx.Response | None:
        """Send a call once; None, after a wait, if it should be sent again."""
        try:
            response = await self._http.send(self._request(call))
        except (httpx.ConnectError, httpx.ConnectTimeout):
            wait_s = self._retry.wait_s(attempt, None)
            if wait_s is None:
                raise
        else:
            if response.status_code not in PASSING:
                return response
            wait_s = self._retry.wait_s(attempt, response.headers.get("retry-after"))
            if wait_s is None:
                return response
        await asyncio.sleep(wait_s)
        return None

    def _request(self, call: Call) -> httpx.Request:
        """Write a call as a form of files and fields."""
        if not call.files:
            return self._http.build_request("GET", call.path)
        files = [(name, (name, file)) for name, file in call.files]
        fields = {
            name: value if isinstance(value, str) else orjson.dumps(value).decode()
            for name, value in call.fields.items()
        }
        return self._http.build_request("POST", call.path, files=files, data=fields)

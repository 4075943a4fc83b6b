"""One request's images through decoding, batcher and engine: what is served, in one place."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import anyio.to_thread

from service.addresses import Address, Source, UrlRules
from service.attention import to_draw_on
from service.batcher import Batcher, Sizes, Trace, untraced
from service.contract import ModelInfo, Output, PreprocessSpec
from service.engine import Engine, load_engine, warm_up
from service.errors import ServiceError, UrlsDisabled
from service.images import ImageLimits, decode
from service.metrics import Metrics
from service.model_file import read_model_info
from service.preprocess import Fit, Preprocessed, least_side, preprocess
from service.settings import Settings
from service.thumbnails import shrink
from service.tickets import Inferred, Prepare, Result

Fetching = Callable[[Sequence[Source]], AbstractAsyncContextManager[list[bytes | ServiceError]]]
"""Holds the files of images while a block runs, those given by address fetched."""

Keep = Literal["nothing", "picture", "thumbnail"]
"""What is kept of the decoded picture: enough to be drawn on, or little to be shown."""


class Batch(NamedTuple):
    """The answers to a request's images.

    Attributes:
        items: For each image what was inferred; None where it failed.
        errors: What failed, with the image's index, as `ServiceError.to_dict` gives it.
    """

    items: list[Inferred | None]
    errors: list[dict[str, Any]]


class Pipeline:
    """The model, its engine and its batcher."""

    def __init__(
        self,
        settings: Settings,
        info: ModelInfo,
        engine: Engine,
        metrics: Metrics,
        trace: Trace = untraced,
    ) -> None:
        """Set up; it is to be started on the event loop."""
        self.settings = settings
        self.info = info
        self.engine = engine
        self.metrics = metrics
        self.batcher = Batcher(
            engine.run,
            Sizes(
                # With the cores to themselves, one decoder more than they are covers for those
                # that wait for the interpreter lock.
                num_decoders=settings.num_threads + (not engine.uses_cpu),
                num_runners=engine.num_runners,
                max_batch=engine.max_batch,
                max_queue_images=settings.max_queue_images,
                patience_s=engine.patience_s,
            ),
            self.metrics,
            trace,
        )
        self.is_draining = False
        self._num_calls = 0
        self._is_unused = asyncio.Event()
        self._is_unused.set()
        self._one_at_a_time = threading.Lock()
        self.fetched = _make_fetching(settings)

    def start(self) -> None:
        """Start the threads, on the event loop that will ask; from now on this is what serves."""
        self.batcher.start()
        labels = (self.info.name, self.engine.name, self.engine.provider, self.engine.precision)
        self.metrics.in_flight_limit.set(self.settings.max_queue_images)
        self.metrics.model.clear()
        self.metrics.model.labels(*labels).set(1)

    def enter(self) -> None:
        """Count a call that begins."""
        self._num_calls += 1
        self._is_unused.clear()

    def leave(self) -> None:
        """Count the end of a call that had entered."""
        self._num_calls -= 1
        if not self._num_calls:
            self._is_unused.set()

    async def retire(self) -> None:
        """Wait for the last call, then end the threads."""
        await self._is_unused.wait()
        await anyio.to_thread.run_sync(self.batcher.stop)

    async def infer(
        self,
        images: Sequence[Source],
        outputs: Sequence[Output],
        fit: Fit,
        *,
        keep: Keep = "nothing",
    ) -> list[Result]:
        """Give a result for each image, in order.

        Args:
            images: Files' bytes, their addresses, or why there is neither.
            outputs: What the engine is asked for.
            fit: What of the picture the model sees.
            keep: What is kept of the decoded picture.

        Raises:
            ServiceError: where the request as a whole cannot be answered.
        """
        decoding = partial(
            _decode,
            limits=self.settings.image_limits,
            spec=self.info.preprocess,
            fit=fit,
            keep=keep,
            one_at_a_time=self._one_at_a_time,
        )
        async with self.fetched(images) as files:
            prepares: list[Prepare] = [partial(decoding, file) for file in files]
            results = await self.batcher.submit(prepares, outputs, self.settings.deadline_s)
        self.metrics.images.inc(sum(isinstance(result, Inferred) for result in results))
        return results

    def settle(self, results: list[Result], *, must_succeed: bool) -> Batch:
        """Part good images from bad ones.

        Args:
            results: A result for each image.
            must_succeed: Whether one bad image fails the request.

        Raises:
            ServiceError: if the only image is bad, one is bad and must not be, or the fault is the
                service's own.
        """
        errors = self.refusals(results, must_succeed=must_succeed)
        items = [result if isinstance(result, Inferred) else None for result in results]
        return Batch(items, errors)

    def refusals(self, results: Sequence[object], *, must_succeed: bool) -> list[dict[str, Any]]:
        """Give what `settle` says of the bad images among results of any kind.

        Raises:
            ServiceError: as `settle` does.
        """
        errors = []
        for index, result in enumerate(results):
            if not isinstance(result, ServiceError):
                continue
            if len(results) == 1:
                raise result
            result.index = index
            if must_succeed or result.status >= 500:
                raise result
            self.metrics.refusals.labels(result.code).inc()
            errors.append(result.to_dict())
        return errors


def load_pipeline(
    settings: Settings, metrics: Metrics, engine: Engine | None = None, trace: Trace = untraced
) -> Pipeline:
    """Load the model file and check that it does what its passport says.

    Args:
        settings: Every knob.
        metrics: Where to count.
        engine: Runs in place of the one that the settings ask for; the model file still says what
            it gives.
        trace: Is told what was done for each call.

    Raises:
        ModelError: if the model cannot be served.
    """
    info = read_model_info(settings.model)
    engine = engine or load_engine(settings, info)
    warm_up(engine, info)
    return Pipeline(settings, info, engine, metrics, trace)


def _make_fetching(settings: Settings) -> Fetching:
    """Give what turns addresses into files, or refuses them where none are fetched."""
    if not settings.fetch_urls:
        return _refuse_addresses
    from service.fetch import Fetcher  # who does not fetch need not load an HTTP client

    rules = UrlRules(
        schemes=settings.url_schemes,
        hosts=settings.url_hosts,
        networks=settings.url_networks,
        timeout_s=settings.url_timeout_s,
        max_bytes=settings.url_max_bytes,
        max_redirects=settings.url_max_redirects,
        ca_file=settings.url_ca_file,
    )
    return Fetcher(rules, max_bytes_held=settings.max_bodies_bytes).fetched


def _refuse_addresses(
    images: Sequence[Source],
) -> AbstractAsyncContextManager[list[bytes | ServiceError]]:
    """Put a refusal in the place of every address."""
    refusal = "this service fetches no addresses; send the image itself"
    return nullcontext(
        [UrlsDisabled(refusal) if isinstance(image, Address) else image for image in images]
    )


def _decode(
    image: bytes | ServiceError,
    *,
    limits: ImageLimits,
    spec: PreprocessSpec,
    fit: Fit,
    keep: Keep,
    one_at_a_time: AbstractContextManager[object],
) -> Preprocessed:
    """Decode one image to the model's pixels, in a worker thread."""
    if isinstance(image, ServiceError):
        raise image
    decoded = decode(image, limits, least_side=least_side(spec), one_at_a_time=one_at_a_time)
    prepared = preprocess(decoded, spec, fit)
    if keep == "nothing":
        return prepared
    if keep == "thumbnail":
        return prepared._replace(picture=shrink(decoded.image))
    return prepared._replace(picture=to_draw_on(decoded.image, prepared.geometry))

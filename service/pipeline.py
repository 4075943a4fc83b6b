"""One request's images through decoding, batcher and engine: what is served, in one place."""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from service.batcher import Batcher, Sizes
from service.contract import ModelInfo, Output, PreprocessSpec
from service.engine import Engine
from service.errors import ServiceError
from service.images import ImageLimits, decode
from service.metrics import Metrics
from service.preprocess import Fit, Preprocessed, least_side, preprocess
from service.settings import Settings
from service.tickets import Inferred, Prepare, Result


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

    def __init__(self, settings: Settings, info: ModelInfo, engine: Engine) -> None:
        """Set up; the batcher is to be started on the event loop."""
        self.settings = settings
        self.info = info
        self.engine = engine
        self.metrics = Metrics()
        self.metrics.model.labels(info.name, engine.name, engine.provider, engine.precision).set(1)
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
        )
        self.is_draining = False

    async def infer(
        self,
        images: Sequence[bytes | ServiceError],
        outputs: Sequence[Output],
        fit: Fit,
        *,
        keep_picture: bool = False,
    ) -> list[Result]:
        """Give a result for each image, in order.

        Args:
            images: Files' bytes, or why there are none.
            outputs: What the engine is asked for.
            fit: What of the picture the model sees.
            keep_picture: Keep the decoded picture, for drawing on it.

        Raises:
            ServiceError: where the request as a whole cannot be answered.
        """
        decoding = partial(
            _decode,
            limits=self.settings.image_limits,
            spec=self.info.preprocess,
            fit=fit,
            keep_picture=keep_picture,
        )
        prepares: list[Prepare] = [partial(decoding, image) for image in images]
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
        errors = []
        for index, result in enumerate(results):
            if isinstance(result, Inferred):
                continue
            if len(results) == 1:
                raise result
            result.index = index
            if must_succeed or result.status >= 500:
                raise result
            self.metrics.refusals.labels(result.code).inc()
            errors.append(result.to_dict())
        items = [result if isinstance(result, Inferred) else None for result in results]
        return Batch(items, errors)


def _decode(
    image: bytes | ServiceError,
    *,
    limits: ImageLimits,
    spec: PreprocessSpec,
    fit: Fit,
    keep_picture: bool,
) -> Preprocessed:
    """Decode one image to the model's pixels, in a worker thread."""
    if isinstance(image, ServiceError):
        raise image
    decoded = decode(image, limits, least_side=least_side(spec))
    prepared = preprocess(decoded, spec, fit)
    return prepared._replace(picture=decoded.image) if keep_picture else prepared

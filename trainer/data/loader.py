"""Batches of views from worker processes.

A sample's randomness comes from (seed, epoch, image) alone, never from the worker or from what it
did before. So a run that goes on in the middle of an epoch sees the same views, bit for bit, with
any number of workers. Views travel as uint8; `to_pixels` makes them float32 on the training device.

Shapes: B images on this rank, V views of each, S the side of a view.
"""

import os
import signal
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset

from service.images import DecodedImage
from trainer.augment import ViewSpec, make_views
from trainer.data.images import ImageReader
from trainer.data.sampler import VIEWS_STREAM, Key
from trainer.expect import expect
from trainer.memory import keep_freed_memory
from trainer.pixel_ops import PixelParameters, alter_pixels, normalize

TERMINATION_GRACE_S = 15
"""How long a worker goes on after SIGTERM."""


class Sample(NamedTuple):
    """The views of one image: V tensors (3, S, S) uint8, V rows of parameters, its name."""

    views: tuple[Tensor, ...]
    parameters: PixelParameters
    name: str


class Batch(NamedTuple):
    """The views of B images.

    Attributes:
        views: V tensors (B, 3, S, S) uint8.
        parameters: (B, V, ...) pixel operations still to be done.
        names: Of the images, as their source gives them.
    """

    views: Sequence[Tensor]
    parameters: PixelParameters
    names: Sequence[str]


MOST_WORKERS = 512
"""Processes that load images, at most; each is a Python with torch."""


@dataclass(frozen=True, kw_only=True)
class LoaderConfig:
    """How batches are made.

    Attributes:
        num_workers: Processes on each rank; 0 makes batches in the training process.
        prefetch: Batches that each worker has ready.
        timeout_s: After so many seconds without a batch the run stops, instead of hanging.
        pin_memory: Whether batches are put where a CUDA device can fetch them by itself.
    """

    num_workers: int = 4
    prefetch: int = 2
    timeout_s: float = 120.0
    pin_memory: bool = False

    def __post_init__(self) -> None:
        is_sane = 0 <= self.num_workers <= MOST_WORKERS
        expect(is_sane, f"0 to {MOST_WORKERS}", num_workers=self.num_workers)
        expect(self.prefetch >= 1, "1 or more", prefetch=self.prefetch)
        expect(self.timeout_s > 0, "over 0", timeout_s=self.timeout_s)


@dataclass(frozen=True)
class ViewMaker:
    """Makes a sample of an image.

    Attributes:
        specs: One for each of the V views.
        seed: Of the run; the same on all ranks.
        alter: Whether the pixel operations are done at once.
    """

    specs: tuple[ViewSpec, ...]
    seed: int
    alter: bool

    def make(self, image: DecodedImage, name: str, words: Sequence[int]) -> Sample:
        """Draw and make the views; words say which image it is, and in which epoch."""
        rng = np.random.default_rng([VIEWS_STREAM, self.seed, *words])
        views = make_views(image, self.specs, rng, alter=self.alter)
        return Sample(views.pixels, views.parameters, name)


@dataclass(frozen=True)
class ViewDataset(Dataset[Sample]):
    """Samples by epoch and image."""

    reader: ImageReader
    maker: ViewMaker

    def __getitem__(self, key: Key) -> Sample:
        """Make the sample of a key; a bad image's place is taken, its randomness is not."""
        image, decoded = self.reader.load(key.image)
        return self.maker.make(decoded, self.reader.source.name(image), key)


def load_batches(
    dataset: ViewDataset, keys: Iterable[list[Key]], config: LoaderConfig
) -> Generator[Batch]:
    """Give the batches of keys in their order (`Order.batches`), made ahead of their use.

    Use it with `contextlib.closing`, so that the workers end with the loop, however that ends.
    Nothing is taken from torch's global generator.

    Raises:
        RuntimeError: if a worker dies or takes longer than the time-out.
        TooManyBadImages: if more images are bad than the rules allow.
    """
    yield from _until_closed(_loader(dataset, config, keys=keys))


def load_streamed(
    dataset: IterableDataset[Sample], batch: int, config: LoaderConfig
) -> Generator[Batch]:
    """Give batches of a dataset that decides on the order itself (`streams.ViewStream`).

    Otherwise as `load_batches`.
    """
    yield from _until_closed(_loader(dataset, config, batch=batch))


def _loader(
    dataset: Dataset[Sample],
    config: LoaderConfig,
    *,
    keys: Iterable[list[Key]] | None = None,
    batch: int = 1,
) -> DataLoader[Sample]:
    """Start workers, for the batches of keys or for batches of so many samples."""
    return DataLoader(
        dataset,
        batch_size=batch,
        batch_sampler=keys,
        collate_fn=collate,
        num_workers=config.num_workers,
        prefetch_factor=config.prefetch if config.num_workers else None,
        timeout=config.timeout_s if config.num_workers else 0,
        pin_memory=config.pin_memory,
        worker_init_fn=start_worker,
        generator=torch.Generator(),
    )


def _until_closed(loader: DataLoader[Sample]) -> Generator[Batch]:
    """Iterate, and end the workers at once when the consumer stops or fails."""
    iterator = iter(loader)
    try:
        yield from iterator
    finally:
        # Torch itself waits for the garbage collector, which a traceback may keep from the iterator
        # until the interpreter ends; then only signals are left to end the workers.
        if loader.num_workers:
            iterator._shutdown_workers()  # type: ignore[attr-defined]  # there is no public way


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack B samples."""
    views = tuple(torch.stack(view) for view in zip(*(s.views for s in samples), strict=True))
    columns = zip(*(sample.parameters for sample in samples), strict=True)
    parameters = PixelParameters(*(torch.stack(column) for column in columns))
    return Batch(views, parameters, tuple(sample.name for sample in samples))


@dataclass(frozen=True, kw_only=True)
class PixelFinish:
    """What is left to do on the training device.

    Attributes:
        device: Where the model is.
        alter: Whether the workers have left the pixel operations to the device.
        mean: Per channel, of values in [0, 1].
        std: Per channel.
    """

    device: torch.device
    alter: bool
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def to_pixels(self, batch: Batch) -> list[Tensor]:
        """Give V views (B, 3, S, S), float32, normalized, on the device."""
        views = []
        for v, view in enumerate(batch.views):
            pixels = view.to(self.device, non_blocking=True)
            if self.alter:
                rows = PixelParameters(*(column[:, v] for column in batch.parameters))
                pixels = alter_pixels(pixels, rows)
            views.append(normalize(pixels, self.mean, self.std))
        return views


def start_worker(_worker: int) -> None:
    """Prepare a worker process.

    Signals that mean "save and stop" reach the whole process group, but it is for the training
    process to decide when, and it may still need a batch. So a worker only takes SIGTERM as a
    request to be gone soon, and then leaves with status 0, which does not disturb a saving parent.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, lambda *_: os._exit(0))
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(TERMINATION_GRACE_S))
    keep_freed_memory()

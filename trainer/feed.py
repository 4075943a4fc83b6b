"""A run's images as batches, from any step on, whatever the source.

Sources that are read by index have a global order; streams are read from beginning to end. Both
give this rank's batches, begin at any step, and know how many steps an epoch has.
"""

from collections.abc import Callable, Generator
from dataclasses import dataclass, replace

import torch

from trainer import distributed
from trainer.augment import least_side
from trainer.config import PretrainConfig
from trainer.data.files import expand
from trainer.data.images import BadImages, ImageReader, ImageRules, open_bad_images
from trainer.data.loader import (
    Batch,
    LoaderConfig,
    ViewDataset,
    ViewMaker,
    load_batches,
    load_streamed,
)
from trainer.data.sampler import Order
from trainer.data.sources import Source, is_stream, open_source
from trainer.data.streams import Shards, ViewStream

INDEX = "images.index"
BAD_IMAGES = "bad_images.tsv"


@dataclass(frozen=True, kw_only=True)
class Feed:
    """Batches of a run.

    Attributes:
        num_images: Of an epoch.
        steps_per_epoch: Whole global batches of an epoch.
        batches: Gives this rank's batches from a step on, without end; to be closed.
        source: Where images can be read by index; None for a stream.
    """

    num_images: int
    steps_per_epoch: int
    batches: Callable[[int], Generator[Batch]]
    source: Source | None


def open_feed(config: PretrainConfig) -> Feed:
    """Find the images and lay out the epochs; all processes call it together.

    Raises:
        FileNotFoundError: if there are no images.
        ValueError: if source, batch and number of processes do not go together.
    """
    ranks, batch = distributed.world_size(), config.optim.batch
    if batch % ranks:
        raise ValueError(f"optim.batch is {batch}, which {ranks} processes cannot share equally")
    maker = ViewMaker(config.crops.specs, config.seed, not config.compute.alter_on_device)
    rules = ImageRules(
        min_side=config.data.min_side,
        least_side=least_side(config.crops.specs),
        max_bad_share=config.data.max_bad_share,
    )
    if is_stream(config.data.path):
        return _open_stream(config, batch // ranks, maker, rules)
    return _open_indexed(config, batch // ranks, maker, rules)


def _open_indexed(config: PretrainConfig, batch: int, maker: ViewMaker, rules: ImageRules) -> Feed:
    """Lay out a source that is read by index."""
    if config.data.images_per_epoch is not None:
        raise ValueError("data.images_per_epoch is for streams; this source knows its own number")
    with distributed.main_first():
        source = open_source(config.data.path, config.out / INDEX)
        bad = open_bad_images(config.out, source, rules)
    order = Order(
        num_images=len(source),
        batch=batch,
        seed=config.seed,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        block_size=source.block_size,
    )
    dataset = ViewDataset(ImageReader(source, rules, bad), maker)

    def batches(step: int) -> Generator[Batch]:
        return load_batches(dataset, order.batches(step), loader_of(config))

    return Feed(
        num_images=len(source),
        steps_per_epoch=order.steps_per_epoch,
        batches=batches,
        source=source,
    )


def _open_stream(config: PretrainConfig, batch: int, maker: ViewMaker, rules: ImageRules) -> Feed:
    """Lay out shards that are read from beginning to end."""
    num_images = config.data.images_per_epoch
    if num_images is None:
        raise ValueError(f"{config.data.path} is a stream: data.images_per_epoch is needed")
    shards = Shards(
        paths=tuple(expand(config.data.path)),
        seed=config.seed,
        batch=batch,
        images_per_epoch=num_images,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        mix=config.data.mix,
    )
    shards.check_workers(config.loader.num_workers)
    bad = BadImages(config.out / BAD_IMAGES, 0, rules.max_bad_share)
    bad.load()

    def batches(step: int) -> Generator[Batch]:
        stream = ViewStream(shards, maker, rules, bad, step=step)
        return load_streamed(stream, batch, loader_of(config))

    return Feed(
        num_images=num_images,
        steps_per_epoch=shards.steps_per_epoch,
        batches=batches,
        source=None,
    )


def loader_of(config: PretrainConfig) -> LoaderConfig:
    """Give the loader's config, with pinned memory where a CUDA device can make use of it."""
    pinned = config.compute.device != "cpu" and torch.cuda.is_available()
    return replace(config.loader, pin_memory=config.loader.pin_memory or pinned)

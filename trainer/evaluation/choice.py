"""Which images an evaluation looks at, and their labels."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from trainer.data.sources import Source, is_stream, open_source
from trainer.evaluation.config import ImagesConfig

logger = logging.getLogger(__name__)

CHOICE_STREAM = 7
"""First word of the seed of the choice of images; training has 1 to 6."""


@dataclass(frozen=True)
class Chosen:
    """Some images of a source, in its order."""

    source: Source
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)


def open_images(path: str) -> Source:
    """Open images that can be read in any order.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if they can only be streamed.
    """
    if is_stream(path):
        raise ValueError(
            f"{path} can only be streamed; unpack it, an evaluation reads in any order"
        )
    return open_source(path)


def choose(source: Source, config: ImagesConfig) -> Chosen:
    """Take all images of a source, or as many as the config allows, drawn by its seed."""
    most = config.max_images
    if most is None or most >= len(source):
        return Chosen(source, range(len(source)))
    rng = np.random.default_rng([CHOICE_STREAM, config.seed])
    return Chosen(source, sorted(rng.permutation(len(source))[:most].tolist()))


@dataclass(frozen=True)
class Split:
    """Labelled images to learn from and to be asked about.

    Attributes:
        train: To learn from; all have a class.
        train_labels: (M,) int64, into `classes`.
        test: To be asked about; all have a class of `classes`.
        test_labels: (N,) int64.
        classes: Names.
        unknown: How many test images were left out because their class is not in training.
    """

    train: Chosen
    train_labels: Tensor
    test: Chosen
    test_labels: Tensor
    classes: tuple[str, ...]
    unknown: int


def open_split(config: ImagesConfig, test: str | None) -> Split:
    """Open labelled images for training and test.

    Args:
        config: `data` names the training images, or without `test` a folder that holds both.
        test: The test images.

    Raises:
        FileNotFoundError: if one of them is not there.
        ValueError: if they have fewer than two classes, or none in common.
    """
    train_path, test_path = (config.data, test) if test else _parts(config.data)
    sources = open_images(train_path), open_images(test_path)
    for path, source in zip((train_path, test_path), sources, strict=True):
        if not source.index.classes:
            raise ValueError(f"{path} needs labels: a folder for each of at least two classes")
    classes = sources[0].index.classes
    numbers = {name: number for number, name in enumerate(classes)}
    train, train_labels = _labelled(choose(sources[0], config), numbers)
    test_images, test_labels = _labelled(choose(sources[1], config), numbers)
    if not len(test_images):
        raise ValueError(f"{test_path} has no class of {train_path}")
    unknown = len(choose(sources[1], config)) - len(test_images)
    if unknown:
        logger.warning("%d test images are of no class in training and left out", unknown)
    return Split(train, train_labels, test_images, test_labels, classes, unknown)


def _parts(data: str) -> tuple[str, str]:
    """Find the folders of training and test images in a folder of both."""
    root = Path(data)
    if not root.exists():
        raise FileNotFoundError(f"no such file or folder: {data}")
    for name in ("val", "test"):
        if (root / "train").is_dir() and (root / name).is_dir():
            return str(root / "train"), str(root / name)
    raise ValueError(f"{data} has no folders train and val; name the images to ask about by --test")


def _labelled(images: Chosen, numbers: Mapping[str, int]) -> tuple[Chosen, Tensor]:
    """Keep the images whose class has a number, and give the numbers."""
    names = [*images.source.index.classes, ""]  # the label -1 of an image without class finds ""
    labels = [numbers.get(names[images.source.label(i)], -1) for i in images.indices]
    kept = [i for i, label in zip(images.indices, labels, strict=True) if label >= 0]
    return Chosen(images.source, kept), torch.tensor([x for x in labels if x >= 0])

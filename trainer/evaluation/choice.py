"""Which images an evaluation looks at, and their labels."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from trainer.data.sources import Source, is_stream, open_source
from trainer.evaluation.columns import check_column, read_records
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


def choose(source: Source, most: int | None, seed: int) -> Chosen:
    """Take all images of a source, or where there are more than `most` so many, drawn by a seed."""
    if most is None or most >= len(source):
        return Chosen(source, range(len(source)))
    rng = np.random.default_rng([CHOICE_STREAM, seed])
    return Chosen(source, sorted(rng.permutation(len(source))[:most].tolist()))


@dataclass(frozen=True)
class Split:
    """Labelled images to learn from and to be asked about.

    Attributes:
        train: To learn from.
        train_targets: (M,) int64, into `classes`; or (M, K) bool, if an image has any number of
            them.
        test: To be asked about.
        test_targets: (N,) int64 or (N, K) bool.
        classes: K names.
        unknown: How many test images were left out because their class is not in training.
    """

    train: Chosen
    train_targets: Tensor
    test: Chosen
    test_targets: Tensor
    classes: tuple[str, ...]
    unknown: int


class Labels(NamedTuple):
    """Where the classes of images are found.

    Attributes:
        column: Of the manifest, or one that every image has.
        are_many: Whether an image has any number of them, separated by semicolons.
    """

    column: str = "class"
    are_many: bool = False


def open_split(config: ImagesConfig, test: str | None, labels: Labels) -> Split:
    """Open labelled images for training and test.

    Args:
        config: `data` names the training images, or without `test` a folder that holds both.
        test: The test images.
        labels: Where their classes are found.

    Raises:
        FileNotFoundError: if one of them is not there.
        ValueError: if they have fewer than two classes, or none in common.
    """
    train_path, test_path = (config.data, test) if test else _parts(config.data)
    train, train_names = _named(train_path, config, labels)
    asked, test_names = _named(test_path, config, labels)
    classes = _sorted({name for names in train_names for name in names})
    if len(classes) < 2:
        raise ValueError(f"{train_path} needs labels: a folder for each of at least two classes")
    numbers = {name: number for number, name in enumerate(classes)}
    known = [i for i, names in enumerate(test_names) if labels.are_many or names[0] in numbers]
    if not known or not any(name in numbers for names in test_names for name in names):
        raise ValueError(f"{test_path} has no class of {train_path}")
    if len(known) < len(asked):
        logger.warning("%d test images are of no class in training", len(asked) - len(known))
    return Split(
        train=train,
        train_targets=_targets(train_names, numbers, labels),
        test=Chosen(asked.source, [asked.indices[i] for i in known]),
        test_targets=_targets([test_names[i] for i in known], numbers, labels),
        classes=classes,
        unknown=len(asked) - len(known),
    )


def _parts(data: str) -> tuple[str, str]:
    """Find the folders of training and test images in a folder of both."""
    root = Path(data)
    if not root.exists():
        raise FileNotFoundError(f"no such file or folder: {data}")
    for name in ("val", "test"):
        if (root / "train").is_dir() and (root / name).is_dir():
            return str(root / "train"), str(root / name)
    raise ValueError(f"{data} has no folders train and val; name the images to ask about by --test")


def _named(path: str, config: ImagesConfig, labels: Labels) -> tuple[Chosen, list[list[str]]]:
    """Choose images of a path and give the names of their classes; those without are left out."""
    source = open_images(path)
    images = choose(source, config.max_images, config.seed)
    if labels.column == "class":  # which needs no manifest
        names = [*source.index.classes, ""]  # the label -1 of an image without class finds ""
        texts = [names[source.label(i)] for i in images.indices]
    else:
        records = read_records(path, source, [labels.column])
        check_column(records, labels.column)
        texts = [records[i][labels.column] for i in images.indices]
    if labels.are_many:
        return images, [[name for name in text.split(";") if name] for text in texts]
    kept = [i for i, text in zip(images.indices, texts, strict=True) if text]
    return Chosen(source, kept), [[text] for text in texts if text]


def _targets(names: Sequence[Sequence[str]], numbers: Mapping[str, int], labels: Labels) -> Tensor:
    """Turn names into (N,) numbers, or (N, K) bools of those that have a number."""
    if not labels.are_many:
        return torch.tensor([numbers[name] for (name,) in names])
    targets = torch.zeros(len(names), len(numbers), dtype=torch.bool)
    for row, some in zip(targets, names, strict=True):
        row[[numbers[name] for name in some if name in numbers]] = True
    return targets


def _sorted(names: set[str]) -> tuple[str, ...]:
    """Sort names, numbers by value."""
    numeric = all(name.isdecimal() for name in names)
    return tuple(sorted(names, key=int) if numeric else sorted(names))

"""Any classification set of torchvision that is on disk already, as PNG files.

torchvision's sets name their parts in two ways, `train=True` or `split="train"`; those with a
single part are split by us. Nothing is downloaded.
"""

import inspect
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from esvit.backbones.vision import torchvision
from trainer.prepare.image_folder import Collection, Picture, Request, Split, split_of


@dataclass(frozen=True, kw_only=True)
class TorchvisionSet(Request):
    """A set of torchvision whose items are an image and the number of its class.

    Attributes:
        set: Its class in torchvision.datasets: CIFAR10, Food101, Flowers102, ...
        root: The folder that torchvision expects for it.
        train_split: Name of the part to train on, for a set that has several.
        val_split: Name of the part that is held out.
    """

    set: str
    root: Path
    train_split: str = "train"
    val_split: str = "test"

    def collect(self, cache: Path) -> Collection:
        """Open the set.

        Raises:
            FileNotFoundError: if it is not on disk.
            ValueError: if there is no such set or part, or it is of another kind.
        """
        parts = [_open(self, name, split) for name, split in self._names()]
        return Collection(
            pictures=(picture for part in parts for picture in read_pictures(part)),
            num_pictures=sum(len(part.items) for part in parts),
            licences=f"# Licences\n\nSee torchvision's page on {self.set}.\n",
            origins=[part.source for part in parts],
        )

    def _names(self) -> list[tuple[str, Split | None]]:
        """Name the set's parts, and the split that each becomes; what has no parts is split."""
        parameters = _parameters(self.set)
        if "split" in parameters and "kwargs" in parameters:  # EMNIST: `train` is among them
            raise ValueError(
                f"{self.set} does not name its parts by split; its IDX files are read by "
                "`fashion-mnist --source`"
            )
        if "split" in parameters:
            if self.train_split == self.val_split:
                raise ValueError(f"train_split and val_split are both {self.val_split!r}")
            return [(self.train_split, "train"), (self.val_split, "val")]
        return [("train", "train"), ("test", "val")] if "train" in parameters else [("all", None)]


class Part(NamedTuple):
    """A part of a set.

    Attributes:
        items: Pairs of an image and the number of its class.
        name: torchvision's name of the part; `all` for a set without parts.
        split: What it becomes; None if it is to be split.
        source: Where its items are from.
    """

    items: Sequence[Any]
    name: str
    split: Split | None
    source: str


def read_pictures(part: Part) -> Iterator[Picture]:
    """Write the items of a part as PNG.

    Raises:
        ValueError: if an item is not an image and the number of its class.
    """
    folders = class_folders(getattr(part.items, "classes", ()))
    for number in range(len(part.items)):
        image, label = part.items[number]
        if not isinstance(image, Image.Image) or not isinstance(label, int):
            kinds = f"{type(image).__name__} and {type(label).__name__}"
            raise ValueError(f"{part.source} gives {kinds}, expected an image and its class")
        concept = f"{part.name}-{number:07}"
        yield Picture(
            file=f"{number:07}.png",
            label=folders[label] if folders else f"{label:04}",
            split=part.split or split_of(concept),
            concept=concept,
            variant="",
            vendor="",
            licence="NOASSERTION",
            source=f"{part.source}[{number}]",
            data=to_png(image),
        )


def to_png(image: Image.Image) -> bytes:
    """Write an image as PNG, which knows no CMYK."""
    buffer = io.BytesIO()
    known = image.mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
    (image if known else image.convert("RGB")).save(buffer, "PNG")
    return buffer.getvalue()


def class_folders(names: Sequence[Any]) -> list[str]:
    """Make folder names of a set's class names; ImageNet gives several names for a class."""
    first = [name if isinstance(name, str) else name[0] for name in names]
    slugs = [re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") for name in first]
    if all(slugs) and len(set(slugs)) == len(slugs):
        return slugs
    return [f"{number:04}-{slug}".rstrip("-") for number, slug in enumerate(slugs)]


def _open(wanted: TorchvisionSet, name: str, split: Split | None) -> Part:
    """Open a part of a set that is on disk."""
    if not wanted.root.is_dir():
        raise FileNotFoundError(f"there is no folder {wanted.root}")
    parameters = _parameters(wanted.set)
    choice: dict[str, Any] = {"download": False} if "download" in parameters else {}
    if "split" in parameters:
        choice["split"] = name
    elif "train" in parameters:
        choice["train"] = name == "train"
    try:
        items = _constructor(wanted.set)(wanted.root, **choice)
    except (RuntimeError, OSError) as error:  # how torchvision says that files are missing
        reason = str(error).strip().splitlines()[0].partition(" You can use download")[0]
        raise FileNotFoundError(f"{wanted.set} is not in {wanted.root}: {reason}") from error
    except TypeError as error:
        raise ValueError(f"{wanted.set} opens otherwise than a labelled set: {error}") from error
    return Part(items, name, split, f"torchvision.datasets.{wanted.set}.{name}")


def _parameters(name: str) -> frozenset[str]:
    """Name the parameters that open a set."""
    return frozenset(inspect.signature(_constructor(name)).parameters)


def _constructor(name: str) -> Callable[..., Any]:
    """Find a set's class.

    Raises:
        ValueError: if there is none.
    """
    if name not in torchvision.datasets.__all__:
        known = ", ".join(sorted(torchvision.datasets.__all__))
        raise ValueError(f"torchvision has no set {name}; it has {known}")
    found: Callable[..., Any] = getattr(torchvision.datasets, name)
    return found

"""What images a source holds and where: a table in flat arrays, kept in a file between starts.

Millions of Python strings would cost gigabytes and be copied page by page into every worker that
touches their reference counts; flat arrays cost some 60 bytes an image and are shared.
"""

import json
import os
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from esvit.files import replacing

FORMAT = "2"
"""Version of the index file; files of another are made anew."""

NO_LABEL = -1
MAX_SKIPPED_NAMES = 1000
"""How many names of files that are no images are kept; the others are only counted."""


@dataclass(frozen=True, kw_only=True)
class Index:
    """N images.

    Attributes:
        names: Bytes of all names, one after the other.
        ends: (N,) where each name ends.
        labels: (N,) number of the image's class, -1 where unknown.
        places: (N, 3) file, then offset and size in it, or row group and row; unused in folders.
        files: The files that hold the images; for a folder, the folder.
        classes: Names of the classes, sorted; empty if there are none.
        skipped: Names of files that are no images by their names, at most 1000 of them.
        num_skipped: How many there are.
        watched: Files and folders with the time in nanoseconds of their last change.
    """

    names: NDArray[np.uint8]
    ends: NDArray[np.int64]
    labels: NDArray[np.int32]
    places: NDArray[np.int64]
    files: tuple[str, ...]
    classes: tuple[str, ...]
    skipped: tuple[str, ...]
    num_skipped: int
    watched: Mapping[str, int]

    def __len__(self) -> int:
        return len(self.ends)

    def name(self, i: int) -> str:
        """Give the name of image i, as the file system spells it."""
        start = int(self.ends[i - 1]) if i else 0
        return os.fsdecode(self.names[start : int(self.ends[i])].tobytes())

    def is_current(self) -> bool:
        """Tell whether nothing that was scanned has changed since."""
        try:
            return all(Path(p).stat().st_mtime_ns == time for p, time in self.watched.items())
        except OSError:
            return False


class IndexBuilder:
    """Collects images while a source is scanned."""

    def __init__(self, files: Sequence[str]) -> None:
        self._files = tuple(files)
        self._names = bytearray()
        self._ends, self._labels, self._places = array("q"), array("i"), array("q")
        self._classes: dict[str, int] = {}
        self._skipped: list[str] = []
        self._num_skipped = 0
        self._watched: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._ends)

    def watch(self, path: str) -> None:
        """Remember when a file or folder was last changed; call before reading it."""
        self._watched[path] = Path(path).stat().st_mtime_ns

    def add(self, name: str, label: str | None, place: tuple[int, int, int] = (0, 0, 0)) -> None:
        """Add one image; label is the name of its class."""
        self._names += os.fsencode(name)
        self._ends.append(len(self._names))
        self._labels.append(NO_LABEL)
        self._places.extend(place)
        if label is not None:
            self.label_last(label)

    def label_last(self, label: str) -> None:
        """Say of which class the image is that was added last."""
        self._labels[-1] = self._classes.setdefault(label, len(self._classes))

    def skip(self, name: str) -> None:
        """Count a file that is no image by its name."""
        self._num_skipped += 1
        if len(self._skipped) < MAX_SKIPPED_NAMES:
            self._skipped.append(name)

    def finish(self) -> Index:
        """Give the table."""
        labels, classes = self._sorted_classes()
        return Index(
            names=np.frombuffer(bytes(self._names), np.uint8),
            ends=np.array(self._ends, np.int64),
            labels=labels,
            places=np.array(self._places, np.int64).reshape(-1, 3),
            files=self._files,
            classes=classes,
            skipped=tuple(self._skipped),
            num_skipped=self._num_skipped,
            watched=self._watched,
        )

    def _sorted_classes(self) -> tuple[NDArray[np.int32], tuple[str, ...]]:
        """Number the classes in their order, numbers by value, instead of as they turned up."""
        labels = np.array(self._labels, np.int32)
        if not self._classes:
            return np.full_like(labels, NO_LABEL), ()
        numeric = all(name.isdecimal() for name in self._classes)
        names = sorted(self._classes, key=int) if numeric else sorted(self._classes)
        renumbered = np.empty(len(names) + 1, np.int32)
        renumbered[[self._classes[name] for name in names]] = np.arange(len(names))
        renumbered[NO_LABEL] = NO_LABEL
        return renumbered[labels], tuple(names)


def save_index(index: Index, path: Path, key: str) -> None:
    """Write the table; key is what was scanned."""
    about = {
        "files": index.files,
        "classes": index.classes,
        "skipped": index.skipped,
        "num_skipped": index.num_skipped,
        "watched": dict(index.watched),
    }
    arrays: dict[str, NDArray[Any]] = {
        "names": index.names,
        "ends": index.ends,
        "labels": index.labels,
        "places": index.places,
    }
    metadata = {"format": FORMAT, "key": key, "about": json.dumps(about)}
    with replacing(path) as temporary:
        save_file(arrays, temporary, metadata)


def load_index(path: Path, key: str) -> Index | None:
    """Read the table back if it is of the same scan and nothing has changed since."""
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("key") != key:
                return None
            about = json.loads(metadata["about"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    except (FileNotFoundError, SafetensorError):
        return None
    index = Index(
        names=arrays["names"],
        ends=arrays["ends"],
        labels=arrays["labels"],
        places=arrays["places"],
        files=tuple(about["files"]),
        classes=tuple(about["classes"]),
        skipped=tuple(about["skipped"]),
        num_skipped=about["num_skipped"],
        watched=about["watched"],
    )
    return index if index.is_current() else None

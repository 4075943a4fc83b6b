"""Where images lie: a folder, zip files, tar shards or parquet files, read by index in any order.

Every medium is scanned once into an `Index`; afterwards an image is one read at a known place, with
no handle kept open, so a source can be pickled, forked and read from many processes. Shards that
come through a pipe or over HTTP, or are compressed as a whole, cannot be read by index: `streams`.

Labels are never needed; where there are some they are kept: the top-level folder of a folder or
zip, `.cls` beside an image in tar shards, a column `label` in parquet.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from trainer.data.archives import read_tar, read_zip, scan_tar, scan_zip
from trainer.data.files import STREAMED, expand, read_folder, scan_folder
from trainer.data.index import Index, load_index, save_index
from trainer.data.parquet import read_parquet, scan_parquet

logger = logging.getLogger(__name__)

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


class Medium(NamedTuple):
    """How one kind of source is scanned, and how image i of it is read."""

    scan: Callable[[list[str]], Index]
    read: Callable[[Index, int], bytes]


MEDIA = {
    "folder": Medium(scan_folder, read_folder),
    "zip": Medium(scan_zip, read_zip),
    "tar": Medium(scan_tar, read_tar),
    "parquet": Medium(scan_parquet, read_parquet),
}


@dataclass(frozen=True)
class Source:
    """N images that can be read by index.

    Attributes:
        index: What there is and where.
        medium: How it is read: a key of `MEDIA`.
    """

    index: Index
    medium: str

    def __len__(self) -> int:
        return len(self.index)

    def name(self, i: int) -> str:
        """Give what a person finds image i by."""
        return self.index.name(i)

    def label(self, i: int) -> int:
        """Give the number of image i's class in `index.classes`, -1 if it has none."""
        return int(self.index.labels[i])

    def read(self, i: int) -> bytes:
        """Read the file of image i.

        Raises:
            UnreadableImage, FileNotFoundError, PermissionError: for a fault of this image.
            OSError: for a fault of the storage.
        """
        return MEDIA[self.medium].read(self.index, i)

    @property
    def block_size(self) -> int:
        """How many neighbours cost no more to read than one of them; 1 where order is free."""
        if self.medium != "parquet":
            return 1
        changes = np.any(np.diff(self.index.places[:, :2], axis=0), axis=1)
        return len(self) // (1 + int(changes.sum()))


def open_source(path: str, cache: Path | None = None) -> Source:
    """Scan what path names, or take the table of an earlier scan from the file cache.

    Args:
        path: A folder, or files of one kind: zip, tar or parquet; several by wildcards
            (`shards/*.tar`) or braces (`train-{000..146}.tar`).
        cache: Where the table is kept between starts; made anew when anything scanned has changed.

    Raises:
        FileNotFoundError: if nothing is there, or no image in it.
        ValueError: if the files are of no known kind, or of several.
    """
    files = expand(path)
    medium = _medium(path, files)
    key = json.dumps([medium, [str(Path(file).absolute()) for file in files]])
    index = load_index(cache, key) if cache else None
    if index is None:
        index = MEDIA[medium].scan(files)
        if cache and len(index):
            save_index(index, cache, key)
    if not len(index):
        others = f"; of {index.num_skipped} other files one is {[*index.skipped, ''][0]}"
        raise FileNotFoundError(f"no image in {path}{others if index.skipped else ''}")
    logger.info("%s: %d images, %d classes", path, len(index), len(index.classes))
    if index.num_skipped:
        logger.warning("%s: %d files are no images by their names", path, index.num_skipped)
    return Source(index, medium)


def is_stream(path: str) -> bool:
    """Tell whether path can only be read from beginning to end."""
    return path.startswith(STREAMED) or path.endswith(_COMPRESSED)


def _medium(path: str, files: list[str]) -> str:
    """Name the one medium of the files."""
    if len(files) == 1 and Path(files[0]).is_dir():
        return "folder"
    kinds = {Path(file).suffix.lower().lstrip(".") for file in files}
    if len(kinds) != 1 or not kinds <= MEDIA.keys() - {"folder"}:
        found = ", ".join(sorted(kinds)) or "files without a suffix"
        raise ValueError(f"{path}: expected a folder, or .zip, .tar or .parquet files, got {found}")
    return kinds.pop()

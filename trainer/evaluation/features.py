"""What a frozen network gives for many images: worked out once, kept in files, gone on with.

A cache is a folder of parts, one safetensors file for so many images, each written whole or not at
all. The folder's name is a digest of everything that the numbers depend on: weights, preprocessing,
arithmetic, images. So what is found is right, what is missing is made, and an interrupted command
goes on where it was.

Shapes: N images asked for, D numbers an image.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from esvit.files import replacing
from trainer.data.loader import LoaderConfig
from trainer.data.sources import Source
from trainer.evaluation.images import Squared, Squares, in_batches, load_squares
from trainer.evaluation.progress import show_progress

logger = logging.getLogger(__name__)

FORMAT = 1
"""Of the cache, and of what its numbers mean; others are not found."""

PART = 1024
"""Images of a part: what a killed command loses at most."""


@dataclass(frozen=True)
class Rows:
    """D numbers for each good one of N images.

    Attributes:
        parts: (n, D) float32 each, one below the other; as a rule mapped from files, so that they
            take memory only while they are looked at.
        positions: (M,) int64, which of the N images the rows are of, ascending.
        asked: N.
    """

    parts: tuple[Tensor, ...]
    positions: Tensor
    asked: int

    def __len__(self) -> int:
        return len(self.positions)

    def all(self) -> Tensor:
        """Give (M, D) in memory."""
        return torch.cat(self.parts)

    def take(self, places: Tensor) -> Tensor:
        """Give some of the M rows in memory, in the order of their places (n,) int64."""
        ends = torch.tensor([len(part) for part in self.parts]).cumsum(0)
        taken = torch.empty(len(places), self.parts[0].shape[1])
        parts = torch.bucketize(places, ends, right=True)
        for number in sorted(set(parts.tolist())):
            chosen = parts == number
            first = int(ends[number]) - len(self.parts[number])
            taken[chosen] = self.parts[number][places[chosen] - first]
        return taken


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """How numbers are made of images.

    Attributes:
        compute: Makes (B, D) float32 of a batch.
        key: What the numbers depend on beside the images; JSON.
        batch: Images at a time.
        loader: How they are loaded.
        cache: Folder of all caches; None to keep nothing.
        console: Where progress is shown.
    """

    compute: Callable[[Squares], Tensor]
    key: Mapping[str, Any]  # JSON
    batch: int
    loader: LoaderConfig
    cache: Path | None
    console: Console = field(default_factory=lambda: Console(stderr=True))


class _Part(NamedTuple):
    """Rows of some of the N images, and their positions."""

    rows: Tensor
    positions: Tensor


def extract(
    dataset: Squared, source: Source, indices: Sequence[int], how: Extraction, *, name: str
) -> Rows:
    """Give the numbers of images, from the cache as far as they are in it.

    Args:
        dataset: Gives N images by position.
        source: Where they are from.
        indices: Which images of the source they are.
        how: What is made of them.
        name: What progress is shown of.

    Raises:
        ValueError: if none of the images can be read.
        OSError: if the cache cannot be written.
    """
    ranges = [range(s, min(s + PART, len(indices))) for s in range(0, len(indices), PART)]
    folder = None
    if how.cache is not None:
        key = json.dumps([FORMAT, how.key, images_digest(source, indices)], sort_keys=True)
        folder = how.cache / hashlib.sha256(key.encode()).hexdigest()[:32]
        folder.mkdir(parents=True, exist_ok=True)
    parts = {r.start: part for r in ranges if folder and (part := _load(_path(folder, r), r))}
    missing = [r for r in ranges if r.start not in parts]
    if folder and missing and parts:
        logger.info("%s: going on after %d of %d images", name, PART * len(parts), len(indices))
    for positions, part in _make(dataset, missing, how, name):
        if folder is None:
            parts[positions.start] = part
            continue
        path = _path(folder, positions)
        _save(path, part)
        parts[positions.start] = _load(path, positions) or part
    ordered = [parts[r.start] for r in ranges if len(parts[r.start].positions)]
    if not ordered:
        raise ValueError(f"{name}: none of {len(indices)} images can be read")
    rows = Rows(
        tuple(part.rows for part in ordered),
        torch.cat([part.positions for part in ordered]),
        len(indices),
    )
    if len(rows) < rows.asked:
        logger.warning("%s: %d images cannot be read", name, rows.asked - len(rows))
    return rows


def images_digest(source: Source, indices: Sequence[int]) -> str:
    """Digest which images are meant: their names, and what the system says of their files."""
    index, sha = source.index, hashlib.sha256()
    in_folder = source.medium == "folder"
    for file in index.files:
        if not in_folder:
            sha.update(f"{Path(file).name}\0{_stamp(file)}\n".encode())
    for i in indices:
        name = index.name(i)
        # Joined as text: Path would cost more than the file system.
        place = _stamp(f"{index.files[0]}/{name}") if in_folder else str(index.places[i].tolist())
        sha.update(os.fsencode(f"{name}\0{place}\n"))
    return sha.hexdigest()


def _stamp(file: str) -> str:
    """Give size, time of change and permissions of a file; a missing one is another matter."""
    try:
        status = os.stat(file)  # noqa: PTH116  # as above
    except OSError:
        return "missing"
    return f"{status.st_size} {status.st_mtime_ns} {status.st_mode:o}"


def _make(
    dataset: Squared, ranges: list[range], how: Extraction, name: str
) -> Iterator[tuple[range, _Part]]:
    """Work the parts out one after the other, with a progress bar."""
    batches = [batch for positions in ranges for batch in in_batches(positions, how.batch)]
    loaded = load_squares(dataset, batches, how.loader)
    total = sum(len(positions) for positions in ranges)
    with contextlib.closing(loaded), show_progress(how.console, name, total) as advance:
        for positions in ranges:
            made = []
            for batch in in_batches(positions, how.batch):
                squares = next(loaded)
                if squares.positions:
                    made.append((how.compute(squares).float().cpu(), squares.positions))
                advance(len(batch))
            numbers = [place for _, places in made for place in places]
            rows = torch.cat([rows for rows, _ in made]) if made else torch.empty(0, 0)
            yield positions, _Part(rows, torch.tensor(numbers, dtype=torch.int64))


def _path(folder: Path, positions: range) -> Path:
    return folder / f"{positions.start:010}.safetensors"


def _save(path: Path, part: _Part) -> None:
    """Write a part under a temporary name, and put it in its place when it is on the disk."""
    with replacing(path) as temporary:
        save_file({"rows": part.rows.contiguous(), "positions": part.positions}, temporary)


def _load(path: Path, positions: range) -> _Part | None:
    """Map a part; None if it is missing, or cut or damaged and so to be made again."""
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            part = _Part(file.get_tensor("rows"), file.get_tensor("positions"))
    except (OSError, SafetensorError) as error:
        logger.warning("%s is made again: %s", path, error)
        return None
    places = part.positions.numpy()
    is_whole = len(part.rows) == len(places) and np.all(np.isin(places, positions))
    return part if is_whole else None

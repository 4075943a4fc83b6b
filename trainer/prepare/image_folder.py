"""A set of pictures as an image folder: `{train,val}/<class>/<file>`, manifest and licences.

The folder is made under a temporary name beside its own and renamed when it is complete, so a
folder that is there is whole. What was asked for and which archives it was made from stand in
`dataset.json`: the same command again finds its work done.
"""

import csv
import fcntl
import hashlib
import json
import logging
import os
import shutil
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rich.console import Console
from rich.progress import track

logger = logging.getLogger(__name__)

ABOUT, MANIFEST, LICENCES = "dataset.json", "manifest.csv", "LICENCES.md"
Split = Literal["train", "val"]


class Picture(NamedTuple):
    """One file of the folder, and its line of the manifest.

    Attributes:
        file: Name within its class.
        label: The class, a folder's name.
        split: train or val.
        concept: What the picture shows, whoever drew it; equal concepts are in one split.
        variant: Which form of the concept: an emoji's skin tones; empty for the plain one.
        vendor: Who drew it, where there are several.
        licence: SPDX expression.
        source: Where it was taken from.
        data: The file's bytes.
    """

    file: str
    label: str
    split: Split
    concept: str
    variant: str
    vendor: str
    licence: str
    source: str
    data: bytes

    @property
    def path(self) -> str:
        """Where it lies in the folder."""
        return f"{self.split}/{self.label}/{self.file}"


COLUMNS = ("path", "label", "concept", "variant", "vendor", "split", "licence", "source")


class Collection(NamedTuple):
    """Pictures and what is to be said of them.

    Attributes:
        pictures: In any order that is always the same; paths differ.
        num_pictures: How many.
        licences: Markdown: who made them, and what one may do with them.
        origins: What they were made from: file names with digests, or folders.
    """

    pictures: Iterable[Picture]
    num_pictures: int
    licences: str
    origins: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Request(ABC):
    """A set that is asked for, and where it is to lie.

    Attributes:
        out: The folder to make.
        cache: Where archives are kept, and looked for before they are fetched.
    """

    out: Path
    cache: Path = Path("~/.cache/esvit/datasets")

    @abstractmethod
    def collect(self, cache: Path) -> Collection:
        """Find the pictures, fetching what is missing into the cache."""

    def about(self) -> dict[str, Any]:  # JSON values
        """Say what was asked for, as far as it decides what is in the folder."""
        fields = {key: value for key, value in asdict(self).items() if key not in ("out", "cache")}
        plain: dict[str, Any] = json.loads(json.dumps(fields, default=str))
        return {"set": type(self).__name__, **plain}


def split_of(concept: str, *, one_in: int = 5) -> Split:
    """Put a concept into train or val, for good: by its name alone, one in so many into val."""
    number = int(hashlib.sha256(concept.encode()).hexdigest()[:8], 16)
    return "val" if number % one_in == 0 else "train"


def prepare(request: Request) -> int:
    """Make the folder that is asked for, or find it made; give the number of pictures.

    Raises:
        ValueError: if the folder holds something else, or is being made by another process.
        FileNotFoundError: if a source is not there.
        OSError: if an archive cannot be had, or the disk does not take the files.
    """
    out = request.out.expanduser().absolute()
    if out.is_dir() and any(out.iterdir()):
        return _recognise(out, request)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; a folder is to be made there")
    out.parent.mkdir(parents=True, exist_ok=True)
    with _partial_folder(out) as partial:
        collection = request.collect(request.cache.expanduser().absolute())
        entries = _write_pictures(partial, collection)
        _write_manifest(partial, entries)
        (partial / LICENCES).write_text(collection.licences)
        counts = {
            split: sum(entry["split"] == split for entry in entries) for split in ("train", "val")
        }
        about = {**request.about(), "pictures": counts, "origins": list(collection.origins)}
        (partial / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
        partial.replace(out)
    logger.info("%d pictures for training, %d held out", counts["train"], counts["val"])
    return len(entries)


def _recognise(out: Path, request: Request) -> int:
    """Accept a folder that the same request has made."""
    try:
        about = json.loads((out / ABOUT).read_text())
    except (OSError, ValueError):
        raise ValueError(f"{out} is there already and not made by this command") from None
    asked = request.about()
    different = [key for key, value in asked.items() if about.get(key) != value]
    if different:
        key = different[0]
        raise ValueError(f"{out} has {key} {about.get(key)}, not {asked[key]}: give another --out")
    logger.info("%s is there already, whole", out)
    return sum(about["pictures"].values())


@contextmanager
def _partial_folder(out: Path) -> Generator[Path]:
    """Give an empty folder beside `out` that no other process uses; remove it if work fails."""
    partial = out.with_name(f".{out.name}.partial")
    partial.mkdir(exist_ok=True)
    handle = os.open(partial, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        raise ValueError(f"{out} is being made by another process") from None
    try:
        for left in partial.iterdir():  # of a start that was killed
            shutil.rmtree(left) if left.is_dir() else left.unlink()
        yield partial
    finally:
        if partial.exists():
            shutil.rmtree(partial)
        os.close(handle)


def _write_pictures(folder: Path, collection: Collection) -> list[dict[str, str]]:
    """Write the files; give their lines of the manifest."""
    entries = []
    pictures = track(
        collection.pictures,
        description="pictures",
        total=collection.num_pictures,
        console=Console(stderr=True),
        transient=True,
    )
    for picture in pictures:
        path = folder / picture.path
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as file:  # two pictures of one name are a mistake of the collection
            file.write(picture.data)
        fields = {**picture._asdict(), "path": picture.path}
        entries.append({column: fields[column] for column in COLUMNS})
    return sorted(entries, key=lambda entry: entry["path"])


def _write_manifest(folder: Path, entries: list[dict[str, str]]) -> None:
    """Write one line a picture, by path."""
    with (folder / MANIFEST).open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(entries)

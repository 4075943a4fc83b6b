"""Image files and folders of them: which names count, how bytes are read, what a path names."""

import glob
import itertools
import logging
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from trainer.data.index import Index, IndexBuilder

logger = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
)
MAX_FILE_BYTES = 256 * 2**20
"""A larger image file is refused unread."""

STREAMED = ("pipe:", "http://", "https://")
"""How a path begins that is read through a pipe."""

_PROGRESS_EVERY = 100_000
_BRACES = re.compile(r"\{([^{}]*,[^{}]*|\d+\.\.\d+)\}")
_PLAIN_BRACES = re.compile(r"\{([\w.-]+(?:,[\w.-]+)+|\d+\.\.\d+)\}", re.ASCII)


class UnreadableImage(ValueError):
    """Bytes of one image that cannot be had: cut off, encrypted, too many."""


def is_image(name: str) -> bool:
    """Tell by its name whether a file may be an image; one without a suffix may."""
    suffix = PurePosixPath(name).suffix.lower()
    return not suffix or suffix in IMAGE_SUFFIXES


def read_range(path: str, offset: int, size: int | None) -> bytes:
    """Read size bytes from offset on, or the rest of the file.

    Raises:
        UnreadableImage: if there are fewer bytes, or more than an image may have.
        OSError: as the file system does.
    """
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123  # Path.open costs more than this
        length = os.fstat(file.fileno()).st_size
        wanted = length - offset if size is None else size
        if wanted > MAX_FILE_BYTES:
            raise UnreadableImage(f"{wanted:,} bytes; at most {MAX_FILE_BYTES:,} are read")
        if offset + wanted > length:
            raise UnreadableImage(f"file is cut off at {length:,} bytes")
        return os.pread(file.fileno(), wanted, offset)


def expand(path: str) -> list[str]:
    """List what a path with braces and wildcards names: `{a,b}`, `{00..12}`, `*`, `?`, `[...]`.

    In a command or an address, braces of anything but numbers and plain words are left as they are.

    Raises:
        FileNotFoundError: if a name without wildcards does not exist, or nothing matches.
    """
    is_streamed = path.startswith(STREAMED)
    if not is_streamed and Path(path).exists():
        return [path]
    braces = (_PLAIN_BRACES if is_streamed else _BRACES).search(path)
    if braces is not None:
        head, tail = path[: braces.start()], path[braces.end() :]
        return list(
            itertools.chain.from_iterable(expand(head + a + tail) for a in _parts(braces[1]))
        )
    if is_streamed:
        return [path]
    found = sorted(glob.glob(path))  # noqa: PTH207  # of any root, which Path.glob is not
    if not found:
        raise FileNotFoundError(f"no such file or folder: {path}")
    return found


def _parts(inside: str) -> list[str]:
    """List what stands between braces: `a,b` or `00..12`."""
    first, dots, last = inside.partition("..")
    if dots and first.isdecimal() and last.isdecimal():
        return [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]
    return inside.split(",")


def scan_folder(files: list[str]) -> Index:
    """List the images of one folder and all below it; the top-level folder is the class."""
    (root,) = files
    builder = IndexBuilder(files)
    for folder, entry in _walk(root, builder):
        name = f"{folder}/{entry}" if folder else entry
        if not is_image(entry):
            builder.skip(name)
            continue
        builder.add(name, folder.split("/")[0] or None)
        if len(builder) % _PROGRESS_EVERY == 0:
            logger.info("scanning %s: %d images so far", root, len(builder))
    return builder.finish()


def _walk(root: str, builder: IndexBuilder) -> Iterator[tuple[str, str]]:
    """Give folder and name of every file that is not hidden, by name; links are followed."""
    seen: set[tuple[int, int]] = set()
    pending = [""]
    while pending:
        folder = pending.pop()
        path = os.path.join(root, folder)  # noqa: PTH118  # Path costs more than the file system
        status = os.stat(path)  # noqa: PTH116  # as above
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            continue
        seen.add((status.st_dev, status.st_ino))
        builder.watch(path)
        try:
            with os.scandir(path) as entries:
                kept = sorted((e.name, e.is_dir()) for e in entries if not e.name.startswith("."))
        except PermissionError:
            if not folder:
                raise
            logger.warning("%s may not be read: what is in it is left out", path)
            continue
        pending += [f"{folder}/{name}" if folder else name for name, deep in reversed(kept) if deep]
        yield from ((folder, name) for name, deep in kept if not deep)


def read_folder(index: Index, i: int) -> bytes:
    """Read the file of image i."""
    path = os.path.join(index.files[0], index.name(i))  # noqa: PTH118  # as above
    return read_range(path, 0, None)

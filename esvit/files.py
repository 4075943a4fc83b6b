"""Files that are there whole or not at all, whatever happens meanwhile."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

TEMPORARY = ".tmp-"
"""In the name of a file that is not whole yet."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name; what is written there takes the place of `path`, and is on the disk.

    Args:
        path: What it is called in the end; what an error leaves there is what was there before.

    Raises:
        OSError: as the file system does, and where safetensors cannot write.
    """
    temporary = path.with_name(f"{path.name}{TEMPORARY}{uuid.uuid4().hex}")
    try:
        yield temporary
        _flush(temporary)
        temporary.replace(path)
        _flush(path.parent)
    except SafetensorError as error:  # a disk that is full or fails, in its words
        raise OSError(f"{path} could not be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a small file and a line's end; raises OSError as `replacing` does."""
    with replacing(path) as temporary:
        temporary.write_text(text + "\n")


def _flush(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Files that are there whole or not at all, whatever happens meanwhile."""

import os
import uuid
from collections.abc import Callable
from pathlib import Path

TEMPORARY = ".tmp-"
"""How names of files begin that are not whole yet."""


def replace_file(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file under a temporary name, make it last, and only then give it its name.

    Args:
        path: The file.
        write: Writes the temporary file that it is given.

    Raises:
        OSError: as the file system does; the file is what it was then.
    """
    temporary = path.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
    try:
        write(temporary)
        _sync(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync(path.parent)


def remove_temporary(folder: Path) -> None:
    """Remove what a run that was killed has left half-written."""
    for path in folder.glob(f"{TEMPORARY}*"):
        path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the disk hold a file's contents, or a folder's names."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

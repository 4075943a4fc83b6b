"""Checkpoints that a kill, a full disk or a damaged file cannot take away.

A checkpoint is one safetensors file: tensors, and everything else as JSON in its metadata; nothing
is pickled. It is written under a temporary name, flushed to the disk and renamed; then a small file
beside it, with size and SHA-256, declares it finished; last of all `latest` is made to name it. So
at any moment the folder holds the last finished checkpoint, and a damaged one is known by its sum.
"""

import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from esvit.files import TEMPORARY, replacing, write_text

logger = logging.getLogger(__name__)

FORMAT = "1"
LATEST = "latest"

_NAME = re.compile(r"step-(\d{9})\.safetensors")


class CheckpointNotWritten(OSError):
    """The disk did not take a checkpoint; those before it are untouched."""


class Checkpoint(NamedTuple):
    """What was saved: tensors on the CPU, and JSON values."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]
    path: Path


@dataclass(frozen=True, kw_only=True)
class KeepRule:
    """Which checkpoints stay.

    Attributes:
        last: How many of the newest.
        every: Those whose step is a multiple stay for good; 0 for none.
    """

    last: int = 3
    every: int = 0

    def __post_init__(self) -> None:
        if self.last < 2:
            raise ValueError(f"last is {self.last}, expected at least 2: one to fall back on")
        if self.every < 0:
            raise ValueError(f"every is {self.every}, expected 0 or more")


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
) -> Path:
    """Write a checkpoint and make it the latest.

    Args:
        folder: Of the checkpoints; must exist.
        step: How many steps are done; a finished checkpoint of the same step is left as it is.
        tensors: By name, on any device; tensors that share memory are written each.
        state: What JSON can hold.

    Raises:
        CheckpointNotWritten: if the disk is full or fails; nothing is left behind then.
    """
    path = folder / f"step-{step:09}.safetensors"
    if _damage(path) is None:
        logger.info("%s is there already", path.name)
    else:
        metadata = {"format": FORMAT, "step": str(step), "state": json.dumps(dict(state))}
        with _disk_errors(), replacing(path) as temporary:
            save_file(_apart(tensors), temporary, metadata)
        with _disk_errors():
            try:
                seal = {"bytes": path.stat().st_size, "sha256": _sha256(path)}
                write_text(_seal(path), json.dumps(seal))
            except OSError:
                path.unlink()  # unfinished, and as large as what did not fit
                raise
    with _disk_errors():
        write_text(folder / LATEST, path.name)
    return path


def load_latest(folder: Path) -> Checkpoint | None:
    """Read the newest checkpoint that is whole, or None if none was ever finished.

    Raises:
        ValueError: if there are finished checkpoints but all are damaged.
    """
    paths = list_checkpoints(folder)
    for path in reversed(paths):
        damage = _damage(path)
        if damage is None:
            return load_checkpoint(path)
        logger.warning("%s is passed over: %s; trying the one before", path, damage)
    if paths:
        raise ValueError(
            f"all {len(paths)} checkpoints in {folder} are damaged; restore one, or remove the "
            "folder to begin anew"
        )
    return None


def load_checkpoint(path: Path) -> Checkpoint:
    """Read one checkpoint without looking at its sum.

    Raises:
        ValueError: if the file is no checkpoint of this format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise ValueError(f"{path} has format {metadata.get('format')}, expected {FORMAT}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no dict
    except SafetensorError as error:
        raise ValueError(f"{path} is no readable checkpoint: {error}") from error
    return Checkpoint(int(metadata["step"]), tensors, json.loads(metadata["state"]), path)


def list_checkpoints(folder: Path) -> list[Path]:
    """List the finished checkpoints, oldest first, damaged ones among them."""
    paths = (path for path in folder.glob("step-*.safetensors") if _NAME.fullmatch(path.name))
    return sorted(path for path in paths if _seal(path).exists())


def remove_old(folder: Path, keep: KeepRule) -> list[Path]:
    """Delete the checkpoints that need not stay, and give their paths."""
    removed = []
    for path in list_checkpoints(folder)[: -keep.last]:
        if keep.every and _step(path) % keep.every == 0:
            continue
        _seal(path).unlink()  # first, so that what is half deleted is not taken for finished
        path.unlink()
        removed.append(path)
    return removed


def set_newer_aside(folder: Path, good: Path) -> None:
    """Take damaged checkpoints out of the row that a run goes on before; for whom it is locked.

    Else they would count among the newest, and those that are written from now on would go.

    Args:
        folder: Of the checkpoints.
        good: The newest good one.
    """
    for path in list_checkpoints(folder):
        if _step(path) > _step(good):
            aside = path.with_name(f"{path.name}.damaged")
            _seal(path).unlink()
            path.rename(aside)
            logger.warning("%s is set aside as %s", path.name, aside.name)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed run has left unfinished; only for whom the folder is locked."""
    for path in folder.iterdir():
        unfinished = _NAME.fullmatch(path.name) and not _seal(path).exists()
        if TEMPORARY in path.name or unfinished:
            logger.info("removing %s, which was never finished", path.name)
            path.unlink()


def check_space(folder: Path, size: int, *, checkpoints: int) -> None:
    """Make sure, before a run, that the disk has room.

    Args:
        folder: On that disk.
        size: Of one checkpoint, in bytes.
        checkpoints: How many will be there at once.

    Raises:
        CheckpointNotWritten: if not.
    """
    free, needed = shutil.disk_usage(folder).free, checkpoints * size
    if free < needed:
        raise CheckpointNotWritten(
            f"{folder} has {free / 1e6:,.0f} MB free; {checkpoints} checkpoints take "
            f"{needed / 1e6:,.0f} MB"
        )


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Turn what a full or failing disk raises into one error."""
    try:
        yield
    except OSError as error:
        raise CheckpointNotWritten(f"no checkpoint was written: {error}") from error


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Bring tensors to the CPU, contiguous, each with memory of its own, as safetensors wants."""
    seen: set[int] = set()
    apart = {}
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        memory = own.untyped_storage().data_ptr()
        apart[name] = own.clone() if memory in seen else own
        seen.add(memory)
    return apart


def _seal(path: Path) -> Path:
    """Give the path of the file that declares a checkpoint finished."""
    return path.with_suffix(".json")


def _damage(path: Path) -> str | None:
    """Say what is wrong with a checkpoint; None if it is whole."""
    try:
        seal = json.loads(_seal(path).read_text())
        if path.stat().st_size != seal["bytes"]:
            return f"it has {path.stat().st_size:,} bytes of {seal['bytes']:,}"
        return None if _sha256(path) == seal["sha256"] else "its SHA-256 is another"
    except FileNotFoundError as error:
        return f"{error.filename} is missing"
    except (ValueError, KeyError, TypeError, OSError) as error:
        return f"it cannot be checked: {error!r}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1])

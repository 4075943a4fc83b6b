"""The folder of a run: one process at a time, and one configuration for good."""

import fcntl
import json
import logging
import os
import socket
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from esvit.files import write_text

logger = logging.getLogger(__name__)

LOCK = "lock"
CONFIG = "config.json"


class RunFolderInUse(ValueError):
    """Another run writes into the folder."""


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Hold a folder for this process; the file `lock` says which host and process holds it.

    The kernel releases the lock when its holder dies, however that happens, so what a killed run
    has left never needs to be deleted by hand. Worker processes do not inherit it. On a network
    file system it holds between hosts as far as that supports POSIX record locks.

    Raises:
        RunFolderInUse: if another process holds it.
    """
    path = folder / LOCK
    with path.open("a+") as file:
        file.seek(0)
        holder = file.read().strip()
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunFolderInUse(f"{folder} is in use by {holder or 'another run'}") from error
        if holder:
            logger.warning("%s was left by a run that has ended: %s", path, holder)
        file.truncate(0)
        file.write(f"host {socket.gethostname()}, process {os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)  # the file stays: deleting it would let two runs lock two files


def check_config(folder: Path, config: Mapping[str, Any], may_differ: Collection[str] = ()) -> None:
    """Save the resolved configuration of a new run, or compare that of a resumed one.

    Args:
        folder: Of the run.
        config: What JSON can hold, nested.
        may_differ: Dotted names, of values or of groups, that may change from start to start.

    Raises:
        ValueError: if anything else differs; the message lists what.
    """
    path = folder / CONFIG
    config = json.loads(json.dumps(config))
    if path.exists():
        before, now = flatten(json.loads(path.read_text())), flatten(config)
        differences = [
            f"{name} was {before.get(name, 'absent')!r}, is {now.get(name, 'absent')!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name, _ABSENT) != now.get(name, _ABSENT)
            and not any(name == free or name.startswith(f"{free}.") for free in may_differ)
        ]
        if differences:
            raise ValueError(f"{folder} holds another run: {'; '.join(differences)}")
    write_text(path, json.dumps(config, indent=2))


_ABSENT = object()


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Name nested values by their path: `data.path`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat

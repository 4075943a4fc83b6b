"""Which pictures a bulk run embeds, and where each lies: a folder, tar shards, or a list of paths.

What was found is kept beside the output, so that a later start need not look again; it is made
anew when a folder, a shard or the list has changed since. Names are bytes, as file systems have
them; a column of Arrow costs what its bytes cost.
"""

import glob
import hashlib
import json
import os
import stat
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from service.bulk.files import replace_file

IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
)

MAX_FILE_BYTES = 256 * 2**20
"""A larger file is not read."""

LISTING = "pictures.parquet"
"""File beside the output that keeps the list."""

PROBE_BYTES = 4096
"""So many bytes of a list are looked at: a text has no zeros there, other files do."""

SCHEMA = pa.schema(
    [("name", pa.binary()), ("file", pa.binary()), ("offset", pa.int64()), ("size", pa.int64())]
)
"""What a person finds a picture by; the file it lies in; where in it; -1 bytes: the whole file."""


class Place(NamedTuple):
    """Where one picture lies: `size` bytes of a file from `offset` on, all of it if -1."""

    name: str
    file: str
    offset: int
    size: int

    def read(self) -> bytes:
        """Read the picture's file.

        Raises:
            OSError: as the file system does, and if it is no file, or one too large or cut.
        """
        with open(self.file, "rb", buffering=0, opener=_at_once) as file:  # several times cheaper
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise OSError("no regular file")
            length = status.st_size
            wanted = length if self.size < 0 else self.size
            if wanted > MAX_FILE_BYTES:
                raise OSError(f"{wanted:,} bytes; at most {MAX_FILE_BYTES:,} are read")
            data = os.pread(file.fileno(), wanted, self.offset)
        if len(data) != wanted:
            raise OSError(f"file is cut off at {length:,} bytes")
        return data


def _at_once(path: str, flags: int) -> int:
    """Open a file, and wait for no writer of a pipe."""
    return os.open(path, flags | os.O_NONBLOCK)


class Listing:
    """N pictures in a fixed order."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def places(self, start: int, stop: int) -> list[Place]:
        """Give where pictures start to stop lie."""
        rows = self._table.slice(start, stop - start).to_pylist()
        return [
            Place(os.fsdecode(row["name"]), os.fsdecode(row["file"]), row["offset"], row["size"])
            for row in rows
        ]

    def digest(self, start: int, stop: int) -> str:
        """Give a hash of which pictures start to stop are, by their names."""
        names = self._table.slice(start, stop - start).column("name").to_pylist()
        return hashlib.sha256(b"\0".join(names)).hexdigest()


def load_listing(cache: Path) -> Listing:
    """Read a list that was kept."""
    return Listing(pq.read_table(cache))


def list_pictures(source: str, cache: Path) -> Listing:
    """List the pictures of a source, or take what an earlier start has found.

    Args:
        source: A folder; tar files, several by wildcards; or a text file with a path in each line.
        cache: File that keeps the list.

    Raises:
        FileNotFoundError: if nothing is there, or no picture in it.
        ValueError: if a tar file is compressed or damaged.
    """
    table = _load(source, cache)
    if table is None:
        watched: dict[str, int] = {}
        rows = list(_scan(source, watched))
        if not rows:
            raise FileNotFoundError(f"no picture in {source}")
        columns = [
            pa.array(column, kind)
            for column, kind in zip(zip(*rows, strict=True), SCHEMA.types, strict=True)
        ]
        about = json.dumps({"source": os.fsencode(source).hex(), "watched": watched})
        table = pa.table(columns, schema=SCHEMA.with_metadata({"esvit": about}))
        replace_file(cache, lambda path: pq.write_table(table, path, compression="zstd"))
    return Listing(table)


def _load(source: str, cache: Path) -> pa.Table | None:
    """Give the kept list if it is of the same source and nothing has changed since."""
    if not cache.exists():
        return None
    table = pq.read_table(cache, memory_map=False)
    about = json.loads((table.schema.metadata or {}).get(b"esvit", "{}"))
    is_same = about.get("source") == os.fsencode(source).hex()
    return table if is_same and all(map(_is_unchanged, about["watched"].items())) else None


Row = tuple[bytes, bytes, int, int]


def _scan(source: str, watched: dict[str, int]) -> Iterator[Row]:
    """Look for pictures; whatever would change with them is noted in `watched`."""
    path = Path(source)
    if path.is_dir():
        return _scan_folder(os.fsencode(path), watched)
    files = [source] if path.exists() else sorted(glob.glob(source, recursive=True))  # noqa: PTH207
    if not files:
        raise FileNotFoundError(f"no such file or folder: {source}")
    if all(file.endswith((".tar", ".tgz", ".tar.gz")) for file in files):
        return _scan_tars(files, watched)
    if len(files) > 1:
        raise ValueError(f"{source} names several files that are not all .tar files")
    return _scan_list(path, watched)


def _scan_folder(root: bytes, watched: dict[str, int]) -> Iterator[Row]:
    """List the pictures of a folder and all below it, by folder and name; links are followed."""
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, onerror=_raise, followlinks=True):
        status = Path(os.fsdecode(folder)).stat()
        if (status.st_dev, status.st_ino) in seen:  # a link that leads back
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith(b"."))
        _watch(os.fsdecode(folder), watched)
        for name in sorted(names):
            if _is_picture(os.fsdecode(name)):
                path = os.path.join(folder, name)  # noqa: PTH118  # Path costs more than the disk
                yield os.path.relpath(path, root), os.path.abspath(path), 0, -1  # noqa: PTH100


def _scan_tars(files: Iterable[str], watched: dict[str, int]) -> Iterator[Row]:
    """List the members of tar shards, each read later at its place."""
    for file in files:
        _watch(file, watched)
        try:
            with tarfile.open(file, "r:") as archive:
                for member in archive:
                    archive.members = []  # type: ignore[attr-defined]  # else it keeps all headers
                    if member.isfile() and _is_picture(member.name):
                        name = os.fsencode(f"{Path(file).name}/{member.name}")
                        where = os.fsencode(Path(file).absolute())
                        yield name, where, member.offset_data, member.size
        except tarfile.ReadError as error:
            raise ValueError(f"{file} is no uncompressed tar file, or damaged: {error}") from error


def _scan_list(path: Path, watched: dict[str, int]) -> Iterator[Row]:
    """List the paths that stand in a text file, one a line."""
    _watch(str(path), watched)
    with path.open("rb") as lines:
        if b"\0" in lines.peek(PROBE_BYTES)[:PROBE_BYTES]:
            raise ValueError(f"{path} is no folder, no .tar file and no list of paths")
        for line in lines:
            if name := line.strip(b"\r\n"):
                yield name, os.fsencode(Path(os.fsdecode(name)).absolute()), 0, -1


def _is_picture(name: str) -> bool:
    """Tell by its name whether a file may be a picture; hidden ones are none."""
    pure = PurePosixPath(name)
    return pure.suffix.lower() in IMAGE_SUFFIXES and not pure.name.startswith(".")


def _watch(path: str, watched: dict[str, int]) -> None:
    """Note when a file or folder was changed; to be called before it is read."""
    watched[os.fsencode(Path(path).absolute()).hex()] = Path(path).stat().st_mtime_ns


def _is_unchanged(entry: tuple[str, int]) -> bool:
    """Tell whether a file or folder is as it was."""
    path, changed_ns = entry
    try:
        return Path(os.fsdecode(bytes.fromhex(path))).stat().st_mtime_ns == changed_ns
    except OSError:
        return False


def _raise(error: OSError) -> None:
    """Let a folder that cannot be read end the scan: what is in it must not be left out."""
    raise error

"""Images inside zip files and tar shards, each read at its place without opening the archive."""

import logging
import os
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from trainer.data.files import (
    IMAGE_SUFFIXES,
    MAX_FILE_BYTES,
    UnreadableImage,
    is_image,
    read_range,
)
from trainer.data.index import Index, IndexBuilder

logger = logging.getLogger(__name__)

_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_ENCRYPTED = 1


def scan_zip(files: list[str]) -> Index:
    """Read the tables of contents; the class is the top-level folder below what all share."""
    builder = IndexBuilder(files)
    for number, file in enumerate(files):
        builder.watch(file)
        try:
            with zipfile.ZipFile(file) as archive:
                members = [m for m in archive.infolist() if not m.is_dir() and not _is_hidden(m)]
        except zipfile.BadZipFile as error:
            raise ValueError(f"{file} is no zip file, or damaged: {error}") from error
        images = [member for member in members if is_image(member.filename)]
        depth = _shared_depth(images)
        for member in images:
            place = (number, member.header_offset, member.compress_size)
            folders = PurePosixPath(member.filename).parts[depth:-1]
            builder.add(member.filename, folders[0] if folders else None, place)
        for member in members:
            if not is_image(member.filename):
                builder.skip(member.filename)
        logger.info("scanning %s: %d images so far", file, len(builder))
    return builder.finish()


def _is_hidden(member: zipfile.ZipInfo) -> bool:
    """Tell dot files and the resource forks that macOS packs along."""
    parts = PurePosixPath(member.filename).parts
    return parts[0] == "__MACOSX" or any(part.startswith(".") for part in parts)


def _shared_depth(members: list[zipfile.ZipInfo]) -> int:
    """Count the folders that all members lie in."""
    folders = {PurePosixPath(member.filename).parent for member in members}
    return len(PurePosixPath(os.path.commonpath(folders)).parts) if folders else 0


def read_zip(index: Index, i: int) -> bytes:
    """Read the member of image i where the table of contents said it begins."""
    number, offset, size = index.places[i].tolist()
    file = index.files[number]
    header = _LOCAL_HEADER.unpack(read_range(file, offset, _LOCAL_HEADER.size))
    signature, _, flags, method, *_, name_bytes, extra_bytes = header
    if signature != b"PK\3\4" or flags & _ENCRYPTED:
        raise UnreadableImage("zip member is damaged or encrypted")
    data = read_range(file, offset + _LOCAL_HEADER.size + name_bytes + extra_bytes, size)
    if method == zipfile.ZIP_STORED:
        return data
    if method != zipfile.ZIP_DEFLATED:
        raise UnreadableImage(f"zip compression {method} is not read, only stored and deflated")
    try:
        return zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, MAX_FILE_BYTES)
    except zlib.error as error:
        raise UnreadableImage(f"zip member is damaged: {error}") from error


def scan_tar(files: list[str]) -> Index:
    """Read the headers of uncompressed tar shards; the class is the `.cls` beside an image."""
    builder = IndexBuilder(files)
    for number, file in enumerate(files):
        builder.watch(file)
        try:
            with tarfile.open(file, "r:") as archive:
                _scan_members(archive, builder, number)
        except tarfile.ReadError as error:
            raise ValueError(f"{file} is no uncompressed tar file, or damaged: {error}") from error
        logger.info("scanning %s: %d images so far", file, len(builder))
    return builder.finish()


def _scan_members(archive: tarfile.TarFile, builder: IndexBuilder, number: int) -> None:
    """Add a shard's images; a sample's `.cls` lies before or behind its image."""
    shard = Path(str(archive.name)).name
    image_key = label_key = label = ""
    for member in archive:
        archive.members = []  # type: ignore[attr-defined]  # else tarfile keeps all headers
        if not member.isfile():
            continue
        key, suffix = split_key(member.name)
        if suffix == ".cls":
            opened = archive.extractfile(member)
            label_key, label = key, opened.read(64).decode().strip() if opened else ""
            if key == image_key:
                builder.label_last(label)
        elif suffix in IMAGE_SUFFIXES:
            place = (number, member.offset_data, member.size)
            builder.add(f"{shard}/{member.name}", label if key == label_key else None, place)
            image_key = key


def split_key(name: str) -> tuple[str, str]:
    """Split a member's name as WebDataset does: the sample's key, and its last suffix."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0], PurePosixPath(last).suffix.lower()


def read_tar(index: Index, i: int) -> bytes:
    """Read the member of image i."""
    number, offset, size = index.places[i].tolist()
    return read_range(index.files[number], offset, size)

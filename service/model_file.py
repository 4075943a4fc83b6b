"""The passport of a model file, read without loading the model.

An ONNX file is a protobuf message: a row of fields, each a key, and here a length and so many
bytes. Walking over the top level takes microseconds whatever the weights weigh, needs no library,
and shows at once when a file is cut or something else entirely.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from service.contract import METADATA_KEY, ModelInfo
from service.errors import ModelError

METADATA_PROPS_FIELD = 14
"""ModelProto.metadata_props, a StringStringEntryProto of key (1) and value (2)."""

GRAPH_FIELD, INITIALIZER_FIELD, EXTERNAL_DATA_FIELD = 7, 5, 13
"""ModelProto.graph, GraphProto.initializer, TensorProto.external_data."""

VARINT, FIXED64, LENGTH_DELIMITED, FIXED32 = 0, 1, 2, 5
"""Protobuf wire types."""

MAX_PASSPORT_BYTES = 1_000_000


def read_model_info(path: Path) -> ModelInfo:
    """Read the passport from a model file.

    Raises:
        ModelError: if the file is missing, cut, not ONNX, keeps weights in other files, or has no
            passport of this format.
    """
    if not path.is_file():
        raise ModelError(f"model file {path} is not there; write one with trainer.export_onnx")
    try:
        with path.open("rb") as file:
            text = _find_metadata(file, path.stat().st_size)
        if text is None:
            raise ValueError(f"has no metadata '{METADATA_KEY}'")
        return ModelInfo.from_json(text)
    except (ValueError, EOFError, OSError) as error:
        raise ModelError(
            f"model file {path} cannot be used: {error}; export it again with trainer.export_onnx"
        ) from error


def _find_metadata(file: BinaryIO, size: int) -> str | None:
    """Give the value under `METADATA_KEY`, None if there is none."""
    found = None
    while file.tell() < size:
        number, length = _read_field(file)
        end = file.tell() + length
        if end > size:
            raise ValueError("is cut or no ONNX file")
        if number == GRAPH_FIELD:
            _refuse_external_data(file, end)
        if number == METADATA_PROPS_FIELD and length <= MAX_PASSPORT_BYTES:
            entry = dict(_read_strings(file, end))
            if entry.get(1) == METADATA_KEY.encode():
                found = entry.get(2, b"").decode()
        file.seek(end)
    return found


def _refuse_external_data(file: BinaryIO, end: int) -> None:
    """Walk over a graph: what is served is the one file that was checked, and no other is read."""
    while file.tell() < end:
        number, length = _read_field(file)
        past = file.tell() + length
        if past > end:
            raise ValueError("is cut or no ONNX file")
        while number == INITIALIZER_FIELD and file.tell() < past:
            part, length = _read_field(file)
            if part == EXTERNAL_DATA_FIELD:
                raise ValueError("keeps weights in another file")
            file.seek(length, os.SEEK_CUR)
        file.seek(past)


def _read_strings(file: BinaryIO, end: int) -> Iterator[tuple[int, bytes]]:
    """Read the length-delimited fields of a small message that ends at `end`."""
    while file.tell() < end:
        number, length = _read_field(file)
        if file.tell() + length > end:  # before so many bytes are asked for
            raise ValueError("is cut or no ONNX file")
        yield number, file.read(length)


def _read_field(file: BinaryIO) -> tuple[int, int]:
    """Read a field's key: its number and the bytes that follow it."""
    key = _read_varint(file)
    number, wire_type = key >> 3, key & 7
    if wire_type == LENGTH_DELIMITED:
        return number, _read_varint(file)
    if wire_type == VARINT:
        _read_varint(file)
        return number, 0
    if wire_type in (FIXED64, FIXED32):
        return number, 8 if wire_type == FIXED64 else 4
    raise ValueError("is cut or no ONNX file")


def _read_varint(file: BinaryIO) -> int:
    """Read a base-128 number of at most ten bytes."""
    value = 0
    for shift in range(0, 70, 7):
        byte = file.read(1)
        if not byte:
            raise EOFError("is cut or no ONNX file")
        value |= (byte[0] & 0x7F) << shift
        if byte[0] < 0x80:
            return value
    raise ValueError("is cut or no ONNX file")

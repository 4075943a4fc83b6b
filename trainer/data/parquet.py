"""Images in a column of parquet files: plain bytes, or Hugging Face's `struct<bytes, path>`.

A row cannot be had without its row group, so neighbours share one reading: the sampler keeps them
near each other (`Source.block_size`), and the last few row groups stay in memory.
"""

import functools
import logging
from pathlib import Path
from types import ModuleType
from typing import Any

from trainer.data.files import UnreadableImage
from trainer.data.index import Index, IndexBuilder

logger = logging.getLogger(__name__)

GROUPS_IN_MEMORY = 8
"""Row groups that a worker keeps; the sampler mixes as many."""

_BATCH_ROWS = 256
"""Rows of a piece: a column of a whole group may be larger than pyarrow's arrays can be."""

_USUAL_NAMES = ("image", "img", "jpg", "jpeg", "png", "image_bytes", "bytes")
_LABEL = "label"


def scan_parquet(files: list[str]) -> Index:
    """Read the footers, and the column `label` where there is one."""
    builder = IndexBuilder(files)
    for number, file in enumerate(files):
        builder.watch(file)
        _scan_file(file, number, builder)
        logger.info("scanning %s: %d images so far", file, len(builder))
    return builder.finish()


def _scan_file(file: str, number: int, builder: IndexBuilder) -> None:
    parquet = _pyarrow_parquet()
    try:
        opened = parquet.ParquetFile(file)
    except ValueError as error:
        raise ValueError(f"{file} is no parquet file, or damaged: {error}") from error
    with opened:
        image_column(opened.schema_arrow, file)
        has_labels = _LABEL in opened.schema_arrow.names
        for group in range(opened.num_row_groups):
            rows = opened.metadata.row_group(group).num_rows
            columns = opened.read_row_group(group, [_LABEL]) if has_labels else None
            labels = columns[_LABEL].to_pylist() if columns else [None] * rows
            for row, label in enumerate(labels):
                name = f"{Path(file).name}#{group}.{row}"
                builder.add(name, None if label is None else str(label), (number, group, row))


def image_column(schema: Any, file: str) -> str:  # Any: pyarrow has no hints
    """Find the column with image bytes: by a usual name, or the only one of bytes.

    Raises:
        ValueError: if none or several might be meant.
    """
    columns: list[str] = [field.name for field in schema if _holds_bytes(str(field.type))]
    for name in _USUAL_NAMES:
        if name in columns:
            return name
    if len(columns) != 1:
        found = ", ".join(columns) or "none"
        raise ValueError(
            f"{file}: expected one column of bytes, or one named image; of bytes there are: {found}"
        )
    return columns[0]


def _holds_bytes(kind: str) -> bool:
    """Tell columns of bytes, and of structs with a field `bytes`, by the name of their type."""
    return kind in ("binary", "large_binary") or kind.startswith("struct<bytes: ")


def read_parquet(index: Index, i: int) -> bytes:
    """Read image i from its row group, which is kept for its neighbours."""
    number, group, row = index.places[i].tolist()
    value = _row_group(index.files[number], group)[row].as_py()
    data = value["bytes"] if isinstance(value, dict) else value
    if not isinstance(data, bytes):
        raise UnreadableImage("row holds no bytes")
    return data


@functools.lru_cache(maxsize=GROUPS_IN_MEMORY)
def _row_group(file: str, group: int) -> Any:  # Any: pyarrow has no hints
    """Read the image column of one row group."""
    import pyarrow  # there, if an index was made

    with _pyarrow_parquet().ParquetFile(file) as opened:
        name = image_column(opened.schema_arrow, file)
        pieces = opened.iter_batches(_BATCH_ROWS, [group], [name], use_threads=False)
        return pyarrow.chunked_array([piece.column(0) for piece in pieces])


def _pyarrow_parquet() -> ModuleType:
    try:
        import pyarrow.parquet
    except ModuleNotFoundError as error:
        raise ValueError("parquet needs pyarrow: pip install 'esvit[parquet]'") from error
    module: ModuleType = pyarrow.parquet
    return module

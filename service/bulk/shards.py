"""Numbered parquet shards of vectors, each with all that is to be known of it in its footer.

The pictures of shard n are those from n * shard_size on. A shard holds its failures too, in the
footer, so that one rename decides over all of it; `errors.parquet` is gathered from there.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from service.bulk.embedder import Wanted
from service.bulk.files import replace_file
from service.bulk.listing import Listing
from service.contract import ModelInfo, Output
from service.preprocess import Fit

FOLDER = "embeddings"
ERRORS = "errors.parquet"

FORMAT = "1"
"""Version of the shards' footers."""

ERRORS_SCHEMA = pa.schema(
    [("id", pa.int64()), ("path", pa.string()), ("code", pa.string()), ("message", pa.string())]
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What makes vectors what they are; a folder holds those of one recipe.

    Attributes:
        model: The model's name.
        weights_sha256: Digest of its weights.
        preprocess_sha256: Digest of how an image becomes pixels.
        output: Which of the model's outputs the vectors are.
        fit: What of the picture the model sees.
        regions: Whether there are region features too.
        shard_size: Pictures a shard.
    """

    model: str
    weights_sha256: str
    preprocess_sha256: str
    output: Output
    fit: Fit
    regions: bool
    shard_size: int


def make_recipe(info: ModelInfo, wanted: Wanted, *, shard_size: int) -> Recipe:
    """Give the recipe of a model and what is asked of it."""
    preprocess = json.dumps(asdict(info.preprocess) | {"fit": wanted.fit}, sort_keys=True)
    return Recipe(
        model=info.name,
        weights_sha256=info.weights_sha256,
        preprocess_sha256=hashlib.sha256(preprocess.encode()).hexdigest(),
        output=wanted.output,
        fit=wanted.fit,
        regions=wanted.regions,
        shard_size=shard_size,
    )


@dataclass(frozen=True)
class Shards:
    """The shards of one listing in one folder."""

    out: Path
    listing: Listing
    recipe: Recipe

    @property
    def count(self) -> int:
        """How many shards there are."""
        return -(-len(self.listing) // self.recipe.shard_size)

    def span(self, number: int) -> tuple[int, int]:
        """Give the first picture of a shard and the one behind its last."""
        start = number * self.recipe.shard_size
        return start, min(start + self.recipe.shard_size, len(self.listing))

    def path(self, number: int) -> Path:
        """Give the file of a shard."""
        return self.out / FOLDER / f"part-{number:05d}.parquet"

    def is_done(self, number: int) -> bool:
        """Tell whether a shard is there, of this recipe and of the pictures it is to be of."""
        try:
            footer = _read_footer(self.path(number))
        except FileNotFoundError:
            return False
        except (pa.ArrowInvalid, KeyError, ValueError):  # not written by us
            return False
        expected = {"recipe": asdict(self.recipe), "inputs": self._inputs(number)}
        return footer | expected == footer

    def remove_surplus(self) -> None:
        """Remove shards beyond the last: an earlier, longer listing's."""
        wanted = {self.path(number) for number in range(self.count)}
        for path in (self.out / FOLDER).glob("part-*.parquet"):
            if path not in wanted:
                path.unlink()

    def write(self, number: int, batches: Sequence[Mapping[str, NDArray[Any]]]) -> None:
        """Write a shard, whole or not at all.

        Args:
            number: The shard.
            batches: Columns of its pictures, in order, as `BatchEmbedder` gives them.
        """
        first, _ = self.span(number)
        columns = {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}
        columns["id"] = np.arange(first, first + len(columns["path"]))
        is_good = columns["error"] == ""
        footer = {
            "format": FORMAT,
            "recipe": asdict(self.recipe),
            "inputs": self._inputs(number),
            "errors": [
                {
                    "id": int(columns["id"][row]),
                    "path": columns["path"][row],
                    "code": columns["error"][row],
                    "message": columns["message"][row],
                }
                for row in np.flatnonzero(~is_good)
            ],
        }
        good = {name: column[is_good] for name, column in columns.items()}
        table = _table(good, self.recipe).replace_schema_metadata(_metadata(footer, self.recipe))
        replace_file(self.path(number), lambda path: _write(table, path))

    def gather_errors(self) -> int:
        """Write `errors.parquet` from the shards' footers; give how many failures there are."""
        errors = [
            error
            for number in range(self.count)
            for error in _read_footer(self.path(number))["errors"]
        ]
        table = pa.Table.from_pylist(errors, schema=ERRORS_SCHEMA)
        replace_file(self.out / ERRORS, lambda path: pq.write_table(table, path))
        return len(errors)

    def _inputs(self, number: int) -> str:
        """Give the digest of which pictures a shard is to be of."""
        return self.listing.digest(*self.span(number))


def _table(columns: Mapping[str, NDArray[Any]], recipe: Recipe) -> pa.Table:
    """Make the table of a shard from the columns of the pictures that succeeded."""
    count = len(columns["id"])
    arrays = {
        "id": pa.array(columns["id"], pa.int64()),
        "path": pa.array(columns["path"], pa.string()),
        "embedding": _vectors(columns["embedding"]),
        "width": pa.array(columns["width"], pa.int32()),
        "height": pa.array(columns["height"], pa.int32()),
        "sha256": pa.array(columns["sha256"], pa.string()),
        "model": pa.array([recipe.model] * count, pa.string()),
    }
    if recipe.regions:
        arrays["regions"] = _vectors(columns["regions"])
    return pa.table(arrays)


def _vectors(array: NDArray[Any]) -> pa.Array:
    """Give an (N, ..., C) array as a column of fixed-size lists of numbers."""
    column = pa.array(np.ascontiguousarray(array).reshape(-1))
    for length in reversed(array.shape[1:]):
        column = pa.FixedSizeListArray.from_arrays(column, length)
    return column


def _metadata(footer: Mapping[str, Any], recipe: Recipe) -> dict[str, str]:
    """Give a shard's metadata: what everyone may want to know by name, and all of it for us."""
    return {
        "model": recipe.model,
        "weights_sha256": recipe.weights_sha256,
        "preprocess_sha256": recipe.preprocess_sha256,
        "esvit": json.dumps(footer),
    }


def _write(table: pa.Table, path: Path) -> None:
    """Write a table; vectors do not repeat, so neither dictionaries nor strong compression pay."""
    pq.write_table(table, path, compression="lz4", use_dictionary=["model"])


def _read_footer(path: Path) -> dict[str, Any]:
    """Read what a shard says of itself."""
    footer: dict[str, Any] = json.loads((pq.read_metadata(path).metadata or {})[b"esvit"])
    if footer["format"] != FORMAT:
        raise ValueError(f"{path} has format {footer['format']}, expected {FORMAT}")
    return footer


def known_recipe(out: Path) -> dict[str, Any] | None:
    """Give the recipe of the shards that a folder holds already; None if there are none."""
    for path in _shard_files(out):
        try:
            recipe: dict[str, Any] = _read_footer(path)["recipe"]
        except (pa.ArrowInvalid, KeyError, ValueError):
            continue
        return recipe
    return None


def _shard_files(out: Path) -> Iterator[Path]:
    """Give the shards of a folder."""
    return (out / FOLDER).glob("part-*.parquet")

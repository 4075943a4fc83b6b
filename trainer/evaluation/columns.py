"""What is known of images beside their pixels: columns of a manifest, and their names.

A manifest is a file `manifest.csv` with a column `path`, relative to its folder, as
`trainer.datasets` writes it; it lies in the folder of the images or in the one above.
"""

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from trainer.data.sources import Source

MANIFEST = "manifest.csv"
OF_NAMES = frozenset(("path", "class", "stem", "tail"))
"""Columns of every image, read from its name."""

Record = Mapping[str, str]
"""Column to value, of one image."""


class Condition(NamedTuple):
    """What images must meet: `column=value,value` or `column!=value,value`."""

    column: str
    values: frozenset[str]
    is_wanted: bool

    def holds(self, record: Record) -> bool:
        """Say whether an image meets it."""
        return (record[self.column] in self.values) == self.is_wanted


def parse_condition(text: str) -> Condition:
    """Read a condition.

    Raises:
        ValueError: if it has no column, or no `=`.
    """
    left, equals, right = text.partition("=")
    column = left.removesuffix("!")
    if not equals or not column:
        raise ValueError(f"condition is {text!r}, expected column=value or column!=value")
    return Condition(column, frozenset(right.split(",")), not left.endswith("!"))


def select(records: Sequence[Record], conditions: Sequence[Condition]) -> list[int]:
    """Give the positions of the images that meet all conditions."""
    return [
        position
        for position, record in enumerate(records)
        if all(condition.holds(record) for condition in conditions)
    ]


def read_records(path: str, source: Source, wanted: Iterable[str]) -> list[Record]:
    """Give the columns of all images of a source.

    Args:
        path: What it was opened with.
        source: The images.
        wanted: Columns that will be asked for; where names have them all, no manifest is read.

    Raises:
        ValueError: if the manifest is unreadable or lacks an image.
    """
    own: list[Record] = [_own(source, i) for i in range(len(source))]
    if OF_NAMES.issuperset(wanted):
        return own
    folder = Path(path)
    name = folder.stem if folder.is_file() else folder.resolve().name  # train.zip holds train/
    for manifest, prefix in ((folder / MANIFEST, ""), (folder.parent / MANIFEST, f"{name}/")):
        if manifest.is_file():
            rows = _read_manifest(manifest)
            missing = next((r["path"] for r in own if prefix + r["path"] not in rows), None)
            if missing is not None:
                raise ValueError(f"{manifest} has no line for {prefix}{missing}")
            return [{**record, **rows[prefix + record["path"]]} for record in own]
    return own


def check_column(records: Sequence[Record], column: str) -> None:
    """Refuse a column that there is not.

    Raises:
        ValueError: naming those that there are.
    """
    if column not in records[0]:
        raise ValueError(f"no column {column!r}; there are {', '.join(sorted(records[0]))}")


def _own(source: Source, i: int) -> dict[str, str]:
    """Read what an image's name says."""
    name = PurePosixPath(source.name(i))
    stem, _, tail = name.stem.partition("__")
    label = source.label(i)
    folder = source.index.classes[label] if label >= 0 else ""
    return {"path": str(name), "class": folder, "stem": stem, "tail": tail}


def _read_manifest(path: Path) -> dict[str, dict[str, str]]:
    """Read a manifest by path; every line must have all columns."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # as spreadsheets write it
            rows = list(csv.DictReader(file))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no readable CSV: {error}") from error
    if not rows or "path" not in rows[0]:
        raise ValueError(f"{path} has no column path")
    broken = next((n for n, row in enumerate(rows, 2) if None in row or None in row.values()), None)
    if broken is not None:
        raise ValueError(f"{path}: line {broken} has not as many values as the first has columns")
    return {row["path"]: row for row in rows}

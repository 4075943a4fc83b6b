"""Open Clipart: drawings in the public domain, by subject.

Many drawings are in several folders; what decides the split is the drawing itself, so equal files
are never on both sides. A few files are damaged: they are kept, as the trainer passes them over.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from trainer.prepare.image_folder import Collection, Picture, Request, split_of
from trainer.prepare.packages import Package, debian_folder

PACKAGE = Package(registry="debian", name="openclipart-png", pattern="openclipart-png_*.deb")
INSTALLED = Path("/usr/share/openclipart/png")
LICENCE = "CC-PDDC"


@dataclass(frozen=True, kw_only=True)
class OpenClipart(Request):
    """Open Clipart: 8,121 transparent drawings, 3 to 16,000 px, in 22 folders.

    Attributes:
        source: Folder of folders of PNG files; else Debian's package openclipart-png, installed or
            fetched.
    """

    source: Path | None = None

    def collect(self, cache: Path) -> Collection:
        """List the drawings.

        Raises:
            FileNotFoundError: if there are none.
            FetchError: if the package cannot be had.
        """
        folder = self.source or debian_folder(PACKAGE, INSTALLED, cache)
        files = sorted(path for path in folder.glob("*/**/*.png") if path.is_file())
        if not files:
            raise FileNotFoundError(f"{folder} holds no folders of PNG files")
        return Collection(
            pictures=read_pictures(folder, files),
            num_pictures=len(files),
            licences=_LICENCES if self.source is None else f"# Licences\n\nThose of {folder}.\n",
            origins=[str(folder)],
        )


def read_pictures(folder: Path, files: list[Path]) -> Iterator[Picture]:
    """Read the files; the first folder is the class, those below go into the file's name."""
    for path in files:
        label, *rest = path.relative_to(folder).parts
        data = path.read_bytes()
        concept = hashlib.sha256(data).hexdigest()[:16]
        yield Picture(
            file="__".join(rest),
            label=label,
            split=split_of(concept),
            concept=concept,
            variant="",
            vendor="",
            licence=LICENCE,
            source=f"openclipart/png/{path.relative_to(folder)}",
            data=data,
        )


_LICENCES = """# Licences

Drawings of the Open Clip Art Library (https://openclipart.org), which their makers gave into the
public domain, from Debian's package openclipart-png, unchanged.
"""

"""Fashion-MNIST, or any set in MNIST's four IDX files, as grey PNG files of 28 px.

The IDX format: two zero bytes, the type of the numbers (8 for bytes), the number of axes, each
axis's length as a big-endian uint32, then the numbers (https://yann.lecun.com/exdb/mnist).
"""

import gzip
import io
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from trainer.prepare.image_folder import Collection, Picture, Request, Split
from trainer.prepare.packages import Package, debian_folder

PACKAGE = Package(
    registry="debian", name="dataset-fashion-mnist", pattern="dataset-fashion-mnist_*.deb"
)
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
FILES: dict[Split, str] = {"train": "train", "val": "t10k"}
"""How the names of each split's two files begin; the published test images are what is held out."""

CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle-boot",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FashionMnist(Request):
    """Fashion-MNIST: 60,000 and 10,000 grey pictures of clothes, 28 px, 10 classes.

    Attributes:
        source: Folder of the four IDX files, gzipped or not; else Debian's package
            dataset-fashion-mnist, installed or fetched. MNIST's own files will do too.
        class_names: One for each label.
    """

    source: Path | None = None
    class_names: tuple[str, ...] = CLASSES

    def collect(self, cache: Path) -> Collection:
        """Read the four files.

        Raises:
            FileNotFoundError: if one is missing.
            ValueError: if one is damaged, or a label has no name.
            FetchError: if the package cannot be had.
        """
        folder = self.source or debian_folder(PACKAGE, INSTALLED, cache)
        pictures = []
        num_pictures = 0
        for split, name in FILES.items():
            images = read_idx(folder, f"{name}-images-idx3-ubyte", axes=3)
            labels = read_idx(folder, f"{name}-labels-idx1-ubyte", axes=1)
            if len(images) != len(labels) or labels.max(initial=0) >= len(self.class_names):
                raise ValueError(
                    f"{folder}: {len(images)} images, {len(labels)} labels up to "
                    f"{labels.max(initial=0)}, {len(self.class_names)} class names do not agree"
                )
            pictures.append(self._pictures(split, images, labels))
            num_pictures += len(images)
        return Collection(
            pictures=(picture for some in pictures for picture in some),
            num_pictures=num_pictures,
            licences=_LICENCES if self.source is None else f"# Licences\n\nThose of {folder}.\n",
            origins=[str(folder)],
        )

    def _pictures(
        self, split: Split, images: NDArray[np.uint8], labels: NDArray[np.uint8]
    ) -> Iterator[Picture]:
        """Write images (N, H, W) of labels (N,) as PNG."""
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            buffer = io.BytesIO()
            Image.fromarray(image).save(buffer, "PNG")
            yield Picture(
                file=f"{number:05}.png",
                label=self.class_names[label],
                split=split,
                concept=f"{split}-{number:05}",
                variant="",
                vendor="",
                licence="MIT" if self.source is None else "NOASSERTION",
                source=f"{FILES[split]}-images-idx3-ubyte[{number}]",
                data=buffer.getvalue(),
            )


def read_idx(folder: Path, name: str, *, axes: int) -> NDArray[np.uint8]:
    """Read bytes with so many axes from an IDX file, gzipped or not.

    Raises:
        FileNotFoundError: if there is neither.
        ValueError: if the file is no such array, or cut off.
    """
    zipped, plain = folder / f"{name}.gz", folder / name
    if not zipped.exists() and not plain.exists():
        raise FileNotFoundError(f"{folder} has neither {name}.gz nor {name}")
    try:
        data = gzip.decompress(zipped.read_bytes()) if zipped.exists() else plain.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{zipped} is damaged: {error}") from error
    if data[:4] != bytes((0, 0, 8, axes)):
        raise ValueError(f"{folder / name} does not begin as an IDX file of bytes, {axes} axes")
    start = 4 + 4 * axes
    shape = tuple(int(length) for length in np.frombuffer(data[4:start], ">u4"))
    if len(data) != start + np.prod(shape):
        raise ValueError(f"{folder / name} has {len(data) - start} bytes, expected {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


_LICENCES = """# Licences

Fashion-MNIST, copyright 2017 Zalando SE (https://tech.zalando.com), under the MIT licence, from
Debian's package dataset-fashion-mnist, whose copyright file has the text. Pixels are unchanged.
"""

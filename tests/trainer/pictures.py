"""Small image files for tests, each of one colour that tells which it is."""

import io
import tarfile

import numpy as np
from PIL import Image


def picture(number, *, size=(40, 30), kind="JPEG"):
    """Give a file with some texture and a mean that grows with number."""
    rng = np.random.default_rng(number)
    pixels = rng.integers(0, 60, (size[1], size[0], 3), dtype=np.uint8) + number % 190
    buffer = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def fill_folder(folder, count, *, classes=("cat", "dog")):
    """Write count pictures, dealt out to the classes."""
    for number in range(count):
        path = folder / classes[number % len(classes)] / f"{number:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number))
    return folder


def write_tar(path, members, mode="w"):
    """Write a tar file of (name, bytes)."""
    with tarfile.open(path, mode) as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def names(folder):
    """List what lies in a folder."""
    return sorted(path.name for path in folder.iterdir())

"""Colour profiles written by the tests: a matrix and a curve (ICC.1, section 8.3)."""

import struct

import numpy as np
from PIL import Image

TO_XYZ = {
    "sRGB": [[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7139]],
    "Display P3": [[0.5151, 0.2920, 0.1571], [0.2412, 0.6922, 0.0666], [-0.0011, 0.0419, 0.7841]],
    "Adobe RGB": [[0.6097, 0.2053, 0.1492], [0.3111, 0.6257, 0.0632], [0.0195, 0.0609, 0.7446]],
}
"""Linear light of each space to XYZ under D50."""

GAMMA = 2.2


def profile(space: str, kind: bytes = b"RGB ") -> bytes:
    """Write the profile of a space, its curve a plain power."""
    columns = np.array(TO_XYZ[space]).T
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(GAMMA * 256)) + bytes(2)
    tags = {b"wtpt": xyz((0.9642, 1.0, 0.8249))}
    if kind == b"GRAY":
        tags[b"kTRC"] = curve
    else:
        for name, column in zip((b"r", b"g", b"b"), columns, strict=True):
            tags |= {name + b"XYZ": xyz(column), name + b"TRC": curve}
    offset = 132 + 12 * len(tags)
    table, data = struct.pack(">I", len(tags)), b""
    for name, tag in tags.items():
        table += name + struct.pack(">II", offset + len(data), len(tag))
        data += tag
    head = struct.pack(
        ">I4sI4s4s4s", offset + len(data), b"none", 0x02100000, b"mntr", kind, b"XYZ "
    )
    head += struct.pack(">6H4s", 2026, 1, 1, 0, 0, 0, b"acsp") + bytes(28)
    head += xyz((0.9642, 1.0, 0.8249))[8:]
    return head.ljust(128, b"\0") + table + data


def xyz(values) -> bytes:
    """Write three numbers as fixed-point."""
    return b"XYZ " + bytes(4) + struct.pack(">3i", *(round(65536 * float(v)) for v in values))


def in_space(image: Image.Image, space: str) -> Image.Image:
    """Give the numbers that an sRGB picture has in another space."""
    values = np.asarray(image) / 255
    light = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    across = np.linalg.inv(TO_XYZ[space]) @ np.array(TO_XYZ["sRGB"])
    encoded = np.clip(light @ across.T, 0, 1) ** (1 / GAMMA)
    return Image.fromarray(np.rint(255 * encoded).astype(np.uint8))

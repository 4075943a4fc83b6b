"""Is a reduced precision, or a fresh export, faithful? Asked of real photographs, not believed."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.contract import Output, PreprocessSpec
from service.images import ImageLimits, decode
from service.preprocess import preprocess

PHOTOGRAPHS = tuple(sorted((Path(__file__).parent / "photographs").glob("*.jpg")))
"""Real photographs that ship with the service."""

MIN_COSINE = 0.999
"""What every vector of every output must keep to full precision."""


def photograph_pixels(spec: PreprocessSpec) -> NDArray[np.uint8]:
    """Give the shipped photographs as the model sees them: (N, S, S, 3)."""
    decoded = [decode(path.read_bytes(), ImageLimits()) for path in PHOTOGRAPHS]
    return np.stack([preprocess(image, spec, "crop").pixels for image in decoded])


def least_cosines(
    outputs: dict[Output, NDArray[np.float32]], reference: dict[Output, NDArray[np.float32]]
) -> dict[Output, float]:
    """Give for each output the lowest cosine of any of its vectors to the reference's.

    A vector is what lies along the last axis: an embedding, one region, one row of attention.
    """
    return {name: _least_cosine(outputs[name], reference[name]) for name in reference}


def _least_cosine(values: NDArray[np.float32], reference: NDArray[np.float32]) -> float:
    """Give the lowest cosine of any two vectors along the last axis; -1 for NaN and overflow."""
    if not values.size:  # attention of a network that has none
        return 1.0
    left, right = values.astype(np.float64), reference.astype(np.float64)
    if not np.isfinite(left).all():
        return -1.0
    norms = np.linalg.norm(left, axis=-1) * np.linalg.norm(right, axis=-1)
    cosines = (left * right).sum(axis=-1) / np.maximum(norms, 1e-30)
    return float(np.where((left == right).all(axis=-1), 1.0, cosines).min())

"""A picture as the model sees it: its pixels, and the same square large enough to be looked at.

Shapes: S the side of the model's square, P the side of the square that is shown.
"""

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from service.contract import PreprocessSpec
from service.errors import ServiceError
from service.images import decode
from service.preprocess import Fit, Geometry, place, preprocess
from trainer.data.images import TRAINING_LIMITS


class Seen(NamedTuple):
    """A picture before the model.

    Attributes:
        shown: (P, P) what the model sees of it, in RGB.
        pixels: (1, 3, S, S) uint8, what the model gets.
        geometry: Where that lies on the picture.
    """

    shown: Image.Image
    pixels: Tensor
    geometry: Geometry


def look_at(path: Path, spec: PreprocessSpec, fit: Fit, panel: int) -> Seen:
    """Open a picture as the model sees it.

    Args:
        path: An image file.
        spec: The model's preprocessing.
        fit: What of the picture the model sees.
        panel: P.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is no image that can be read.
    """
    try:
        decoded = decode(path.read_bytes(), TRAINING_LIMITS)
    except IsADirectoryError as error:
        raise ValueError(f"{path} is a folder, expected an image file") from error
    except ServiceError as error:
        raise ValueError(f"{path}: {error}") from error
    large = replace(spec, resize=max(panel, round(spec.resize * panel / spec.crop)), crop=panel)
    pixels = np.array(preprocess(decoded, spec, fit).pixels)
    return Seen(
        shown=Image.fromarray(preprocess(decoded, large, fit).pixels),
        pixels=torch.from_numpy(pixels).permute(2, 0, 1)[None].contiguous(),
        geometry=place(decoded.width, decoded.height, spec, fit),
    )

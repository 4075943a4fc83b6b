"""An image becomes the model's pixels, with the geometry that leads back to the picture.

The resize is the published evaluation's, antialiased bicubic. It is done straight to the model's
square from the box on the picture that becomes the crop, which samples the very positions that
"resize the shorter side, then cut the centre" samples, without computing what is cut away.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from service.contract import PreprocessSpec
from service.images import DecodedImage
from service.resample import resample

Fit = Literal["crop", "pad", "stretch"]
"""crop: the centre of the picture (the published evaluation); pad: the whole picture, its sides in
proportion, bordered; stretch: the whole picture, squeezed to a square."""

DRAFT_FACTOR = 2
"""A JPEG is decoded at no less than this multiple of the size it is resized to: at 2 the embedding
keeps a cosine over 0.999 to the full decoding (held by a test)."""


class Geometry(NamedTuple):
    """Where the model's square lies on the upright picture.

    A model pixel (x, y) is the source pixel (left + x * scale_x, top + y * scale_y); corners, not
    centres, of pixels are at whole numbers.
    """

    width: int
    height: int
    left: float
    top: float
    scale_x: float
    scale_y: float

    def to_source(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map (..., 2) model pixels x, y to source pixels."""
        return points * (self.scale_x, self.scale_y) + (self.left, self.top)

    def to_model(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Map (..., 2) source pixels x, y to model pixels."""
        with np.errstate(over="ignore"):  # what is as far off as that is outside, and found to be
            return (points - (self.left, self.top)) / (self.scale_x, self.scale_y)


class Preprocessed(NamedTuple):
    """What the model gets, and the way back.

    Attributes:
        pixels: (S, S, 3) RGB.
        geometry: Where they lie on the picture.
        picture: The upright picture, if it was kept to be drawn on.
    """

    pixels: NDArray[np.uint8]
    geometry: Geometry
    picture: Image.Image | None = None


def least_side(spec: PreprocessSpec) -> int:
    """Give the shorter side below which decoding must not shrink an image."""
    return DRAFT_FACTOR * spec.resize


def place(width: int, height: int, spec: PreprocessSpec, fit: Fit) -> Geometry:
    """Lay the model's square over a picture of `width` x `height` source pixels."""
    side = spec.crop
    if fit == "stretch":
        return Geometry(width, height, 0.0, 0.0, width / side, height / side)
    if fit == "pad":
        longer = max(width, height)
        inner_width = max(1, round(side * width / longer))
        inner_height = max(1, round(side * height / longer))
        scale_x, scale_y = width / inner_width, height / inner_height
        left, top = (side - inner_width) // 2 * scale_x, (side - inner_height) // 2 * scale_y
        return Geometry(width, height, -left, -top, scale_x, scale_y)
    # int truncates the longer side and round takes the even neighbour, as in the transforms that
    # the published weights were evaluated with; else the crop of odd sizes moves by a pixel.
    shorter = min(width, height)
    resized_width = int(spec.resize * width / shorter)
    resized_height = int(spec.resize * height / shorter)
    scale_x, scale_y = width / resized_width, height / resized_height
    left, top = round((resized_width - side) / 2), round((resized_height - side) / 2)
    return Geometry(width, height, left * scale_x, top * scale_y, scale_x, scale_y)


def preprocess(decoded: DecodedImage, spec: PreprocessSpec, fit: Fit) -> Preprocessed:
    """Resize a decoded image to the model's square.

    Args:
        decoded: The upright RGB image; its full size gives the geometry.
        spec: The model's preprocessing.
        fit: What of the picture the model sees.
    """
    geometry = place(decoded.width, decoded.height, spec, fit)
    if fit == "pad":
        return Preprocessed(_render_padded(decoded.image, geometry, spec), geometry)
    # In a JPEG that was shrunk while decoding, the box lies proportionally closer to the corner.
    shrink_x = decoded.image.width / decoded.width
    shrink_y = decoded.image.height / decoded.height
    box = (
        geometry.left * shrink_x,
        geometry.top * shrink_y,
        min((geometry.left + spec.crop * geometry.scale_x) * shrink_x, decoded.image.width),
        min((geometry.top + spec.crop * geometry.scale_y) * shrink_y, decoded.image.height),
    )
    return Preprocessed(np.asarray(resample(decoded.image, (spec.crop, spec.crop), box)), geometry)


def _render_padded(
    image: Image.Image, geometry: Geometry, spec: PreprocessSpec
) -> NDArray[np.uint8]:
    """Centre the whole image in the square; the border is the mean colour, zero to the model."""
    width = round(geometry.width / geometry.scale_x)
    height = round(geometry.height / geometry.scale_y)
    resized = resample(image, (width, height), (0.0, 0.0, image.width, image.height))
    mean = tuple(round(255 * channel) for channel in spec.mean)
    canvas = Image.new("RGB", (spec.crop, spec.crop), mean)
    canvas.paste(resized, ((spec.crop - width) // 2, (spec.crop - height) // 2))
    return np.asarray(canvas)

"""What good answers hold: pictures whose outputs are known, and readers of each encoding."""

import base64
import io

import numpy as np
from PIL import Image

from tests.service import oracles
from tests.service.pictures import png, scene
from tests.service.tiny_model import C, constants

# 36 x 36 px is the tiny model's size before the crop: nothing is resized, and the model sees the
# picture's very pixels 2 to 34.
SQUARE, OTHER = scene(36, 36, seed=3), scene(36, 36, seed=4)
A, B = png(SQUARE), png(OTHER)


def expected(picture: Image.Image) -> dict[str, np.ndarray]:
    """Compute the model's outputs for a picture of 36 x 36 px, by hand."""
    return oracles.tiny_model(np.asarray(picture)[2:34, 2:34], constants())


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def good(response) -> dict:
    assert response.status_code == 200, response.text
    content = response.json()
    assert content["model"] == "tiny"
    assert isinstance(content["dim"], int)
    return content


def floats(text: str, dtype: str = "<f4") -> np.ndarray:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype)


def npy(response) -> np.ndarray:
    assert response.status_code == 200
    assert response.headers["content-type"] == "application/x-npy"
    assert response.headers["x-esvit-model"] == "tiny"
    assert response.headers["x-esvit-dim"] == str(C)
    return np.load(io.BytesIO(response.content), allow_pickle=False)


def read_png(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image)

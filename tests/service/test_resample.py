import importlib
import sys

import numpy as np
import pytest
from PIL import Image

from service import resample as module
from service.resample import resample, resample_with_pillow
from tests.service.pictures import scene

CASES = [
    ((301, 199), (32, 32), (0.0, 0.0, 301.0, 199.0)),
    ((301, 199), (32, 24), (40.25, 13.5, 260.75, 180.125)),
    ((64, 64), (224, 224), (0.0, 0.0, 64.0, 64.0)),
    ((17, 90), (32, 32), (0.0, 36.3, 15.9, 52.2)),
    ((1, 200), (32, 32), (0.0, 99.5, 0.9, 100.4)),
    ((500, 3), (32, 32), (248.6, 0.1, 251.3, 2.8)),
]


def noise(size):
    """Give the hardest picture for a resampler, but one whose overshoot is never clipped."""
    values = np.random.default_rng(0).integers(64, 193, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(values)


@pytest.mark.skipif(not module.HAS_FAST_RESIZER, reason="no wheel for this platform")
@pytest.mark.parametrize("picture", [noise, lambda size: scene(*size)], ids=["noise", "scene"])
@pytest.mark.parametrize(("source", "size", "box"), CASES)
def test_fast_resizer_equals_pillow_within_rounding(picture, source, size, box):
    image = picture(source)
    fast = np.asarray(resample(image, size, box), int)
    slow = np.asarray(resample_with_pillow(image, size, box), int)
    assert fast.shape == (size[1], size[0], 3)
    # Each rounds by half a step after the first pass, which the weights of the second (their
    # magnitudes sum to at most 1.25) pass on, and by half a step at the end: 1.125 from the truth.
    assert np.abs(fast - slow).max() <= 2
    assert abs((fast - slow).mean()) < 0.1  # neither is brighter


def test_without_the_fast_resizer_pillow_resamples(monkeypatch):
    monkeypatch.setitem(sys.modules, "cykooz_resizer", None)  # import of it now fails
    fallback = importlib.util.module_from_spec(importlib.util.find_spec("service.resample"))
    fallback.__spec__.loader.exec_module(fallback)
    image, box = scene(100, 60), (10.5, 5.0, 80.0, 58.5)
    assert not fallback.HAS_FAST_RESIZER
    assert fallback.resample(image, (32, 32), box) == resample_with_pillow(image, (32, 32), box)

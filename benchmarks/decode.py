"""What decoding and resizing one JPEG costs, by step and by way of doing it.

    python -m benchmarks.decode

Processor milliseconds on one thread, median; cosine is that of the pixels, mean taken away, to the
full decoding resampled by Pillow.
"""

import io
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
from PIL import Image

from benchmarks.serving import make_jpeg
from service.contract import PreprocessSpec
from service.images import DecodedImage, ImageLimits, decode
from service.parity import PHOTOGRAPHS
from service.preprocess import least_side, place, preprocess
from service.resample import resample, resample_with_pillow

SPEC = PreprocessSpec()
LIMITS = ImageLimits()


def large_jpeg() -> bytes:
    """Give a photograph enlarged to twelve megapixels."""
    picture = Image.open(PHOTOGRAPHS[1]).convert("RGB").resize((4000, 3000))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def milliseconds(call: Callable[[], object], repeats: int) -> float:
    """Give the median processor time of a call."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return 1e3 * median(times)


def tutorial(data: bytes) -> np.ndarray:
    """Do it as tutorials do: decode all, resize all, cut the centre."""
    image = Image.open(io.BytesIO(data)).convert("RGB")
    shorter = min(image.size)
    size = tuple(int(SPEC.resize * side / shorter) for side in image.size)
    left, top = (round((side - SPEC.crop) / 2) for side in size)
    box = (left, top, left + SPEC.crop, top + SPEC.crop)
    return np.asarray(image.resize(size, Image.Resampling.BICUBIC).crop(box))


def ours(data: bytes) -> np.ndarray:
    """Do it as the service does."""
    return preprocess(decode(data, LIMITS, least_side=least_side(SPEC)), SPEC, "crop").pixels


def undrafted(data: bytes) -> np.ndarray:
    """Do it as the service does, but decode all of the JPEG."""
    return preprocess(decode(data, LIMITS), SPEC, "crop").pixels


def cosine(pixels: np.ndarray, reference: np.ndarray) -> float:
    """Give the cosine of two pictures, mean taken away."""
    left, right = (values.astype(np.float64) - values.mean() for values in (pixels, reference))
    return float((left * right).sum() / np.sqrt((left**2).sum() * (right**2).sum()))


def compare_resamplers(decoded: DecodedImage, repeats: int) -> None:
    """Time both ways to resample the crop's box."""
    geometry = place(decoded.width, decoded.height, SPEC, "crop")
    right = geometry.left + SPEC.crop * geometry.scale_x
    bottom = geometry.top + SPEC.crop * geometry.scale_y
    box = (geometry.left, geometry.top, right, bottom)
    for name, way in (("vector", resample), ("Pillow", resample_with_pillow)):
        spent = milliseconds(
            lambda way=way: way(decoded.image, (SPEC.crop, SPEC.crop), box), repeats
        )
        print(f"  resample the crop, {name:8s} {spent:8.2f} ms")


def main() -> None:
    """Print the table."""
    for name, data, repeats in (("500x375", make_jpeg(), 200), ("4000x3000", large_jpeg(), 10)):
        print(f"{name}, {len(data):,} bytes")
        reference = tutorial(data)
        for way in (tutorial, undrafted, ours):
            spent = milliseconds(partial(way, data), repeats)
            print(
                f"  {way.__name__:27s} {spent:8.2f} ms  cosine {cosine(way(data), reference):.5f}"
            )
        compare_resamplers(decode(data, LIMITS), repeats)


if __name__ == "__main__":
    main()

"""Multi-crop, ours against the published augmentation written with Pillow: images/s on one core.

    python -m benchmarks.augment [--images 60] [--rounds 3]

Every contestant gets the bytes of a JPEG and ends with ten normalized float32 views (two of 224 px,
eight of 96 px). Rounds alternate between them in one process and one thread; the best round counts,
as the others only tell what else the machine did. `crops only` is what is left to a worker when
the training device does the pixel operations.
"""

import argparse
import io
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from service.images import ImageLimits, decode
from trainer.augment import global_views, least_side, local_views, make_views
from trainer.memory import keep_freed_memory
from trainer.pixel_ops import normalize

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SPECS = global_views() + local_views()
SIZES = ((500, 375), (4000, 3000))
PHOTOGRAPHS = Path(__file__).parents[1] / "service" / "photographs"


def crop_box(
    width: int, height: int, scale: tuple[float, float], rng: random.Random
) -> tuple[int, int, int, int]:
    """Draw left, top, width, height as RandomResizedCrop with ratio 3/4 to 4/3 does."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, width - w), rng.randint(0, height - h), w, h
    w = min(width, round(height * 4 / 3))
    h = min(height, round(width * 4 / 3))
    return (width - w) // 2, (height - h) // 2, w, h


def shift_hue(image: Image.Image, shift: float) -> Image.Image:
    """Turn the hue by a share of a turn, in Pillow's 256 steps."""
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + int(shift * 255)) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def jitter(image: Image.Image, rng: random.Random) -> Image.Image:
    """Brightness, contrast, saturation and hue in random order."""
    factors = [rng.uniform(0.6, 1.4), rng.uniform(0.6, 1.4), rng.uniform(0.8, 1.2)]
    shift = rng.uniform(-0.1, 0.1)
    enhancers = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
    for operation in rng.sample(range(4), 4):
        if operation == 3:
            image = shift_hue(image, shift)
        else:
            image = enhancers[operation](image).enhance(factors[operation])
    return image


def pillow_view(
    image: Image.Image,
    rng: random.Random,
    *,
    size: int,
    scale: tuple[float, float],
    blur: float,
    solarize: float = 0.0,
) -> Image.Image:
    """Make one view."""
    left, top, w, h = crop_box(*image.size, scale, rng)
    crop = image.crop((left, top, left + w, top + h))
    image = crop.resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if rng.random() < 0.8:
        image = jitter(image, rng)
    if rng.random() < 0.2:
        image = image.convert("L").convert("RGB")
    if rng.random() < blur:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    if rng.random() < solarize:
        image = ImageOps.solarize(image)
    return image


def pillow_views(image: Image.Image, seed: int) -> list[Image.Image]:
    """Make the ten published views."""
    rng = random.Random(seed)
    views = [
        pillow_view(image, rng, size=224, scale=(0.4, 1.0), blur=1.0),
        pillow_view(image, rng, size=224, scale=(0.4, 1.0), blur=0.1, solarize=0.2),
    ]
    return views + [pillow_view(image, rng, size=96, scale=(0.05, 0.4), blur=0.5) for _ in range(8)]


def run_pillow(data: bytes, seed: int) -> None:
    """Decode, augment, normalize as the published code does."""
    views = pillow_views(Image.open(io.BytesIO(data)).convert("RGB"), seed)
    mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
    for view in views:
        pixels = torch.from_numpy(np.array(view)).permute(2, 0, 1).contiguous()
        pixels.float().div_(255).sub_(mean).div_(std)


def run_ours(data: bytes, seed: int, *, alter: bool = True) -> None:
    """Do what a worker does, and the normalization too."""
    image = decode(data, ImageLimits(), least_side=least_side(SPECS))
    for view in make_views(image, SPECS, np.random.default_rng([seed]), alter=alter).pixels:
        normalize(view[None], MEAN, STD)


def run_crops_only(data: bytes, seed: int) -> None:
    """Do what a worker does when the device does the rest."""
    run_ours(data, seed, alter=False)


CONTESTANTS: dict[str, Callable[[bytes, int], None]] = {
    "Pillow, as published": run_pillow,
    "ours, all in the worker": run_ours,
    "ours, crops only": run_crops_only,
}


def make_jpegs(size: tuple[int, int]) -> list[bytes]:
    """Bring the photographs to a size, as JPEG of quality 90."""
    jpegs = []
    for path in sorted(PHOTOGRAPHS.glob("*.jpg")):
        buffer = io.BytesIO()
        with Image.open(path) as image:
            image.convert("RGB").resize(size, Image.Resampling.BICUBIC).save(
                buffer, "JPEG", quality=90
            )
        jpegs.append(buffer.getvalue())
    return jpegs


def measure(jpegs: list[bytes], num_images: int, num_rounds: int) -> dict[str, float]:
    """Give each contestant's best images/s."""
    best = dict.fromkeys(CONTESTANTS, 0.0)
    for _ in range(num_rounds):
        for name, run in CONTESTANTS.items():
            run(jpegs[0], 0)
            start = time.perf_counter()
            for seed in range(num_images):
                run(jpegs[seed % len(jpegs)], seed)
            best[name] = max(best[name], num_images / (time.perf_counter() - start))
    return best


def main() -> None:
    """Print a table for each size of image."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=60, help="images a round")
    parser.add_argument("--rounds", type=int, default=3, help="rounds; the best counts")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    for size in SIZES:
        num_images = max(6, arguments.images * SIZES[0][0] // size[0])
        best = measure(make_jpegs(size), num_images, arguments.rounds)
        print(f"\n{size[0]}x{size[1]} JPEG, ten views, one core")
        for name, rate in best.items():
            ratio = rate / best["Pillow, as published"]
            print(f"  {name:24} {rate:7.1f} images/s   {1000 / rate:6.1f} ms   x {ratio:.2f}")


if __name__ == "__main__":
    main()

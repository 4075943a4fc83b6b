"""The published multi-crop written with Pillow, one operation after the other, as a reference."""

import math
import random

from PIL import Image, ImageEnhance, ImageFilter, ImageOps


def crop_box(width, height, scale, rng):
    """Draw left, top, width, height as RandomResizedCrop with ratio 3/4 to 4/3 does."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return rng.randint(0, width - w), rng.randint(0, height - h), w, h
    if width / height < 3 / 4:
        w, h = width, round(width / (3 / 4))
    elif width / height > 4 / 3:
        w, h = round(height * (4 / 3)), height
    else:
        w, h = width, height
    return (width - w) // 2, (height - h) // 2, w, h


def shift_hue(image, shift):
    """Turn the hue by a share of a turn, in Pillow's 256 steps."""
    hue, saturation, value = image.convert("HSV").split()
    hue = hue.point([(level + int(shift * 255)) % 256 for level in range(256)])
    return Image.merge("HSV", (hue, saturation, value)).convert("RGB")


def jitter(image, rng):
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


def view(image, rng, *, size, scale, blur, solarize=0.0):
    """Make one view."""
    left, top, w, h = crop_box(*image.size, scale, rng)
    image = image.crop((left, top, left + w, top + h)).resize((size, size), Image.BICUBIC)
    if rng.random() < 0.5:
        image = image.transpose(Image.FLIP_LEFT_RIGHT)
    if rng.random() < 0.8:
        image = jitter(image, rng)
    if rng.random() < 0.2:
        image = image.convert("L").convert("RGB")
    if rng.random() < blur:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.1, 2.0)))
    if rng.random() < solarize:
        image = ImageOps.solarize(image)
    return image


def published_views(image, seed):
    """Make the ten views of the published recipe."""
    rng = random.Random(seed)
    views = [
        view(image, rng, size=224, scale=(0.4, 1.0), blur=1.0),
        view(image, rng, size=224, scale=(0.4, 1.0), blur=0.1, solarize=0.2),
    ]
    return views + [view(image, rng, size=96, scale=(0.05, 0.4), blur=0.5) for _ in range(8)]

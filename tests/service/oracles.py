"""Slow, written-out versions of what the service computes: loops, and nothing of the service."""

import math

import numpy as np
from PIL import Image


def resize_then_crop(image: Image.Image, resize: int, crop: int) -> Image.Image:
    """Do what torchvision's Resize(resize, BICUBIC) and CenterCrop(crop) do to a PIL image."""
    width, height = image.size
    if width <= height:
        size = resize, int(resize * height / width)
    else:
        size = int(resize * width / height), resize
    resized = image.resize(size, Image.Resampling.BICUBIC)
    left = round((size[0] - crop) / 2.0)
    top = round((size[1] - crop) / 2.0)
    return resized.crop((left, top, left + crop, top + crop))


def cosine(a, b):
    """Give the cosine of two vectors."""
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    norms = math.sqrt(sum(float(x) ** 2 for x in a)) * math.sqrt(sum(float(y) ** 2 for y in b))
    return dot / norms


def best_match(feature, candidates, allowed):
    """Give index and cosine of the most similar of the allowed candidates, the first of equals."""
    best, best_score = None, -math.inf
    for index, candidate in enumerate(candidates):
        if allowed[index] and (score := cosine(feature, candidate)) > best_score:
            best, best_score = index, score
    return best, best_score


def correspond(source, target, source_visible, target_visible, is_same=False):
    """Give (source region, target region, cosine, mutual) of every visible source region."""
    matches = []
    for index, feature in enumerate(source):
        if not source_visible[index]:
            continue
        allowed = [
            visible and not (is_same and j == index) for j, visible in enumerate(target_visible)
        ]
        best, score = best_match(feature, target, allowed)
        allowed_back = [
            visible and not (is_same and j == best) for j, visible in enumerate(source_visible)
        ]
        back, _ = best_match(target[best], source, allowed_back)
        matches.append((index, best, score, back == index))
    return matches


def bilinear(features, rows, columns, x, y):
    """Interpolate a region map at column x, row y; region centres lie at halves."""
    x = min(max(x - 0.5, 0.0), columns - 1.0)
    y = min(max(y - 0.5, 0.0), rows - 1.0)
    total = np.zeros(len(features[0]))
    for row in range(rows):
        for column in range(columns):
            weight = max(0.0, 1 - abs(x - column)) * max(0.0, 1 - abs(y - row))
            total += weight * np.asarray(features[row * columns + column], np.float64)
    return total


def tiny_model(pixels, constants, patch=8, heads=2):
    """Compute the tiny model's outputs for one (S, S, 3) picture, patch by patch."""
    scaled = (pixels.astype(np.float64) - constants["mean"]) / constants["std"]
    side = len(pixels) // patch
    regions = np.array(
        [
            scaled[row * patch : (row + 1) * patch, column * patch : (column + 1) * patch].ravel()
            @ constants["projection"]
            for row in range(side)
            for column in range(side)
        ]
    )
    attention = []
    for head in range(heads):
        logits = regions @ constants["query"][head] @ (regions @ constants["key"][head]).T
        weights = np.exp(logits - logits.max(axis=1, keepdims=True))
        attention.append(weights / weights.sum(axis=1, keepdims=True))
    return {
        "embedding": regions.mean(axis=0),
        "regions": regions,
        "attention": np.array(attention),
        "last_blocks": np.concatenate([regions.mean(axis=0), regions.max(axis=0)]),
    }

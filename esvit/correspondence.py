"""Matches between two region maps: which region of one image is which of the other.

What the region task trains for (EsViT, section 2.1 and 4.4), measured and shown: cosine of the
backbone's features, the best match of each region, and whether the match is mutual.

Shapes: B pairs of images, S and T regions of source and target, C channels.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Matches(NamedTuple):
    """The best match of every source region.

    Attributes:
        indices: (B, S) int64, into the T target regions.
        scores: (B, S) cosine, in [-1, 1].
        is_mutual: (B, S) bool, whether the target region's best match is this source region.
    """

    indices: Tensor
    scores: Tensor
    is_mutual: Tensor


def cosines(source: Tensor, target: Tensor) -> Tensor:
    """Compare all regions (B, S, C) of one map with all (B, T, C) of another: (B, S, T) float32.

    A region without length is like nothing: its cosines are 0.

    Raises:
        ValueError: if the maps differ in images or channels.
    """
    if source.ndim != 3 or target.ndim != 3 or source.shape[::2] != target.shape[::2]:
        raise ValueError(
            f"region maps are {tuple(source.shape)} and {tuple(target.shape)}, "
            "expected (B, S, C) and (B, T, C)"
        )
    with torch.autocast(source.device.type, enabled=False):
        source, target = F.normalize(source.float(), dim=-1), F.normalize(target.float(), dim=-1)
        return source @ target.transpose(1, 2)


def nearest(scores: Tensor) -> Tensor:
    """Find each source region's most similar target region: (B, S) int64 from (B, S, T)."""
    return scores.argmax(dim=-1)


def mutual(scores: Tensor) -> Tensor:
    """Say which source regions are the best match of their own best match: (B, S) bool."""
    back = scores.argmax(dim=1).gather(1, nearest(scores))  # (B, S)
    return back == torch.arange(scores.shape[1], device=scores.device)


def match(source: Tensor, target: Tensor) -> Matches:
    """Match every region (B, S, C) of one map to a region (B, T, C) of another."""
    scores = cosines(source, target)
    return Matches(nearest(scores), scores.amax(dim=-1), mutual(scores))

"""What every backbone gives, whichever it is: the backbone contract.

Shape letters: B batch, C channels of the last stage, L regions (positions of the last map, row by
row), D the channels of several blocks side by side.
"""

from typing import NamedTuple

from torch import Tensor


class Features(NamedTuple):
    """What the two tasks of EsViT see of an image.

    Attributes:
        pooled: (B, C) one vector an image; the mean of the regions, or a class token.
        regions: (B, L, C) one vector a region, row by row.
    """

    pooled: Tensor
    regions: Tensor


class AllOutputs(NamedTuple):
    """All that a backbone can say of an image, from a single pass.

    Attributes:
        pooled: (B, C) as in `Features`.
        regions: (B, L, C) as in `Features`.
        attention: (B, heads, L, L) weights of the last block between regions.
        last_blocks: (B, D) pooled outputs of the last blocks, the oldest first.
    """

    pooled: Tensor
    regions: Tensor
    attention: Tensor
    last_blocks: Tensor

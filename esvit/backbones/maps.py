"""What backbones have in common whose stages are maps, from first to last: Swin and CvT.

Shape letters: B batch, H W height and width of a map, C channels, L regions (positions of the last
map), D channels of several blocks side by side.
"""

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from esvit.backbones.contract import AllOutputs, Backbone, Features, checked_images


class MapBlock(Protocol):
    """A module that maps (B, H, W, C) to the same shape by attention and more."""

    def with_attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map x and give the attention (B, heads, H * W, H * W) between positions as well."""


class MapStage(NamedTuple):
    """What leads from the images (B, 3, H, W) or the map before into a stage, and its blocks."""

    enter: nn.Module
    blocks: Sequence[MapBlock]


class _Trail(NamedTuple):
    """What is kept on the way to the last block; maps are (B, H, W, C).

    Attributes:
        maps: Outputs of the last blocks before it, as many as were asked for.
        ends: The last map of each stage before its own.
        x: Its input.
    """

    maps: list[Tensor]
    ends: list[Tensor]
    x: Tensor


class MapBackbone(Backbone):
    """A backbone in stages of maps (B, H, W, C).

    Attributes:
        least_side: Smallest side in pixels of an image.
        norm: Of the last map; a subclass sets it.
    """

    norm: nn.LayerNorm

    def __init__(self, least_side: int) -> None:
        super().__init__()
        self.least_side = least_side

    @property
    @abstractmethod
    def stages(self) -> list[MapStage]:
        """The stages in their order."""

    @property
    def num_blocks(self) -> int:
        """Blocks of all stages."""
        return sum(len(stage.blocks) for stage in self.stages)

    def forward(self, images: Tensor) -> Features:
        """Give pooled (B, C) and region (B, L, C) features of normalised images (B, 3, H, W).

        Raises:
            ValueError: if the images are not (B, 3, H, W), each side at least `least_side`.
        """
        return self._features(self._run(self._last_block, self._up_to_last_block(images).x))

    def last_blocks(self, images: Tensor, n: int) -> Tensor:
        """Give pooled outputs (B, D) of the last n blocks, the oldest first.

        Blocks of the last stage go through the final norm, as in the published linear probe.
        """
        maps, _, x = self._up_to_last_block(images, keep=self.checked_count(n) - 1)
        return self._pooled([*maps, self._run(self._last_block, x)])

    def attention(self, images: Tensor) -> Tensor:
        """Give the last block's attention (B, heads, L, L) between regions, zero across windows.

        What a region gives to padding is left out: where there is none, rows sum to one.
        """
        return self._last_block.with_attention(self._up_to_last_block(images).x)[1]

    def pyramid(self, images: Tensor) -> tuple[Tensor, ...]:
        """Give each stage's map (B, C, H, W), finest first, as its blocks leave it."""
        _, ends, x = self._up_to_last_block(images)
        return _channels_first([*ends, self._run(self._last_block, x)])

    def all_outputs(self, images: Tensor, n: int) -> AllOutputs:
        """Give all of `forward`, `attention`, `last_blocks`, `pyramid` from a single pass."""
        maps, ends, x = self._up_to_last_block(images, keep=self.checked_count(n) - 1)
        x, attention = self._last_block.with_attention(x)
        last_blocks = self._pooled([*maps, x])
        return AllOutputs(*self._features(x), attention, last_blocks, _channels_first([*ends, x]))

    @property
    def _last_block(self) -> MapBlock:
        return self.stages[-1].blocks[-1]

    def _up_to_last_block(self, images: Tensor, keep: int = 0) -> _Trail:
        """Run all blocks but the last and keep the outputs of the last `keep` of them."""
        maps: deque[Tensor] = deque(maxlen=keep)
        ends: list[Tensor] = []
        x = checked_images(images, self.least_side)
        for number, stage in enumerate(self.stages):
            if number:
                ends.append(x)
            x = stage.enter(x)
            for block in stage.blocks:
                if block is self._last_block:
                    break
                x = self._run(block, x)
                maps.append(x)
        return _Trail(list(maps), ends, x)

    def _run(self, block: MapBlock, x: Tensor) -> Tensor:
        """Run a block."""
        return self.run_block(cast(nn.Module, block), x)

    def _features(self, x: Tensor) -> Features:
        """Normalise the last map (B, H, W, C) and lay it out as features."""
        regions = self.norm(x).flatten(1, 2)
        return Features(regions.mean(1), regions)

    def _pooled(self, maps: list[Tensor]) -> Tensor:
        """Average maps over their positions, those of the last stage normalised: (B, D)."""
        first_of_last_stage = len(maps) - len(self.stages[-1].blocks)
        normalised = (
            self.norm(x) if number >= first_of_last_stage else x for number, x in enumerate(maps)
        )
        return torch.cat([x.flatten(1, 2).mean(1) for x in normalised], dim=-1)


def _channels_first(maps: list[Tensor]) -> tuple[Tensor, ...]:
    """Turn maps (B, H, W, C) into (B, C, H, W)."""
    return tuple(x.permute(0, 3, 1, 2) for x in maps)

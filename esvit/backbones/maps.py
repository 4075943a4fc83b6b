"""What backbones have in common whose stages are maps, from first to last: Swin and CvT.

Shape letters: B batch, H W height and width of a map, C channels, L regions (positions of the last
map), D channels of several blocks side by side.
"""

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from itertools import accumulate
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
        _, x = self._up_to_last_block(images, keep=0)
        return self._features(self._run(self._last_block, x))

    def last_blocks(self, images: Tensor, n: int) -> Tensor:
        """Give pooled outputs (B, D) of the last n blocks, the oldest first.

        Blocks of the last stage go through the final norm, as in the published linear probe.
        """
        maps, x = self._up_to_last_block(images, keep=self.checked_count(n) - 1)
        return self._pooled([*maps, self._run(self._last_block, x)])

    def attention(self, images: Tensor) -> Tensor:
        """Give the last block's attention (B, heads, L, L) between regions, zero across windows.

        What a region gives to padding is left out: where there is none, rows sum to one.
        """
        _, x = self._up_to_last_block(images, keep=0)
        return self._last_block.with_attention(x)[1]

    def pyramid(self, images: Tensor) -> tuple[Tensor, ...]:
        """Give each stage's map (B, C, H, W), finest first, as its blocks leave it."""
        maps, x = self._up_to_last_block(images, keep=self.num_blocks)
        return self._of_stages([*maps, self._run(self._last_block, x)])

    def all_outputs(self, images: Tensor, n: int) -> AllOutputs:
        """Give all of `forward`, `attention`, `last_blocks`, `pyramid` from a single pass."""
        count = self.checked_count(n)
        maps, x = self._up_to_last_block(images, keep=self.num_blocks)
        x, attention = self._last_block.with_attention(x)
        maps.append(x)
        last_blocks = self._pooled(maps[-count:])
        return AllOutputs(*self._features(x), attention, last_blocks, self._of_stages(maps))

    @property
    def _last_block(self) -> MapBlock:
        return self.stages[-1].blocks[-1]

    def _up_to_last_block(self, images: Tensor, keep: int) -> tuple[list[Tensor], Tensor]:
        """Run all blocks but the last: the outputs of the last `keep` of them, the last's input."""
        maps: deque[Tensor] = deque(maxlen=keep)
        x = checked_images(images, self.least_side)
        for stage in self.stages:
            x = stage.enter(x)
            for block in stage.blocks:
                if block is self._last_block:
                    break
                x = self._run(block, x)
                maps.append(x)
        return list(maps), x

    def _run(self, block: MapBlock, x: Tensor) -> Tensor:
        """Run a block."""
        return self.run_block(cast(nn.Module, block), x)

    def _features(self, x: Tensor) -> Features:
        """Normalise the last map (B, H, W, C) and lay it out as features."""
        regions = self.norm(x).flatten(1, 2)
        return Features(regions.mean(1), regions)

    def _of_stages(self, maps: list[Tensor]) -> tuple[Tensor, ...]:
        """Choose of all blocks' maps (B, H, W, C) the last of each stage: (B, C, H, W)."""
        ends = accumulate(len(stage.blocks) for stage in self.stages)
        return tuple(maps[end - 1].permute(0, 3, 1, 2) for end in ends)

    def _pooled(self, maps: list[Tensor]) -> Tensor:
        """Average maps over their positions, those of the last stage normalised: (B, D)."""
        first_of_last_stage = len(maps) - len(self.stages[-1].blocks)
        normalised = (
            self.norm(x) if number >= first_of_last_stage else x for number, x in enumerate(maps)
        )
        return torch.cat([x.flatten(1, 2).mean(1) for x in normalised], dim=-1)

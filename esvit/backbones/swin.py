"""Swin transformer, the multi-stage backbone of EsViT, and all that can be asked of it.

Numbers, names and initialisation are those of the published networks, whose weights load as they
are. Unlike there, an image may have any height and width.

Shape letters: B batch, H W height and width of a map, C channels, L regions (positions of the last
map), D channels of several blocks side by side.
"""

from collections import deque
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from esvit.backbones.contract import AllOutputs, Backbone, Features, checked_images, drop_rates
from esvit.backbones.layers import EPS, initialise_linear
from esvit.backbones.swin_config import SwinConfig
from esvit.backbones.swin_layers import (
    PatchEmbed,
    PatchMerging,
    Stage,
    SwinBlock,
    WindowAttention,
)
from esvit.backbones.windows import Windows


class Swin(Backbone):
    """Swin transformer without a classifier."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__()
        self.config = config
        self.patch_embed = PatchEmbed(config.patch, config.dim)
        self.layers = nn.ModuleList(_new_stages(config))
        self.norm = nn.LayerNorm(self.dim, EPS)
        self.apply(_initialise)

    @property
    def dim(self) -> int:
        """Channels C of a pooled or region feature."""
        return self.config.stage_dims[-1]

    @property
    def num_heads(self) -> int:
        """Attention heads of the last block."""
        return self.config.num_heads[-1]

    @property
    def num_blocks(self) -> int:
        """Blocks of all stages."""
        return sum(self.config.depths)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Give rows and columns of the region map of an image of so many pixels."""
        merged = 1 << (len(self.config.depths) - 1)  # patches a region, along a side
        return -(-(height // self.config.patch) // merged), -(
            -(width // self.config.patch) // merged
        )

    def forward(self, images: Tensor) -> Features:
        """Give pooled (B, C) and region (B, L, C) features of normalised images (B, 3, H, W).

        Raises:
            ValueError: if the images are not (B, 3, H, W), each side at least a patch.
        """
        _, x = self._up_to_last_block(images, keep=0)
        return self._features(self.run_block(self._last_block, x))

    def last_blocks(self, images: Tensor, n: int) -> Tensor:
        """Give pooled outputs (B, D) of the last n blocks, the oldest first.

        Blocks of the last stage go through the final norm, as in the published linear probe.
        """
        maps, x = self._up_to_last_block(images, keep=self.checked_count(n) - 1)
        return self._pooled([*maps, self.run_block(self._last_block, x)])

    def attention(self, images: Tensor) -> Tensor:
        """Give the last block's attention (B, heads, L, L) between regions, zero across windows.

        What a region gives to padding is left out: where there is none, rows sum to one.
        """
        _, x = self._up_to_last_block(images, keep=0)
        return self._last_block.with_attention(x)[1]

    def pyramid(self, images: Tensor) -> tuple[Tensor, ...]:
        """Give each stage's map (B, C, H, W), finest first, before merging and final norm."""
        maps, x = self._up_to_last_block(images, keep=self.num_blocks)
        maps.append(self.run_block(self._last_block, x))
        last_of_stage = (sum(self.config.depths[: s + 1]) - 1 for s in range(len(self.layers)))
        return tuple(maps[number].permute(0, 3, 1, 2) for number in last_of_stage)

    def all_outputs(self, images: Tensor, n: int) -> AllOutputs:
        """Give all of `forward`, `attention` and `last_blocks` from a single pass."""
        maps, x = self._up_to_last_block(images, keep=self.checked_count(n) - 1)
        x, attention = self._last_block.with_attention(x)
        pooled, regions = self._features(x)
        return AllOutputs(pooled, regions, attention, self._pooled([*maps, x]))

    @property
    def _stages(self) -> list[Stage]:
        return [cast(Stage, stage) for stage in self.layers]

    @property
    def _last_block(self) -> SwinBlock:
        return cast(SwinBlock, self._stages[-1].blocks[-1])

    def _up_to_last_block(self, images: Tensor, keep: int) -> tuple[list[Tensor], Tensor]:
        """Run all blocks but the last: the outputs of the last `keep` of them, the last's input."""
        maps: deque[Tensor] = deque(maxlen=keep)
        x = self.patch_embed(checked_images(images, self.config.least_side))
        for stage in self._stages:
            for block in stage.blocks:
                if block is self._last_block:
                    break
                x = self.run_block(block, x)
                maps.append(x)
            if stage.downsample is not None:
                x = stage.downsample(x)
        return list(maps), x

    def _features(self, x: Tensor) -> Features:
        """Normalise the last map (B, H, W, C) and lay it out as features."""
        regions = self.norm(x).flatten(1, 2)
        return Features(regions.mean(1), regions)

    def _pooled(self, maps: list[Tensor]) -> Tensor:
        """Average maps over their positions, those of the last stage normalised: (B, D)."""
        first_of_last_stage = len(maps) - self.config.depths[-1]
        normalised = (
            self.norm(x) if number >= first_of_last_stage else x for number, x in enumerate(maps)
        )
        return torch.cat([x.flatten(1, 2).mean(1) for x in normalised], dim=-1)


def _windows(config: SwinConfig, stage: int, number: int) -> Windows:
    """Lay out the windows of a block: every second one shifted, where a map is more than one."""
    side = config.stage_sides[stage]
    if side <= config.window:
        return Windows(side, 0, config.mask_padding)
    return Windows(config.window, number % 2 * (config.window // 2), config.mask_padding)


def _new_stages(config: SwinConfig) -> Iterator[Stage]:
    """Build the stages, with drop rates from 0 to the configured one over all their blocks."""
    last = len(config.depths) - 1
    rates = iter(drop_rates(config.drop_path, sum(config.depths)))
    for stage, dim in enumerate(config.stage_dims):
        blocks = [
            SwinBlock(
                dim,
                config.num_heads[stage],
                _windows(config, stage, number),
                config.mlp_ratio,
                next(rates),
            )
            for number in range(config.depths[stage])
        ]
        yield Stage(blocks, PatchMerging(dim) if stage < last else None)


def _initialise(module: nn.Module) -> None:
    """Draw a module's weights as published; the patch convolution keeps torch's own."""
    initialise_linear(module)
    if isinstance(module, WindowAttention):
        nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)

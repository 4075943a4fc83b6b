"""Swin transformer, the multi-stage backbone of EsViT.

Numbers, names and initialisation are those of the published networks, whose weights load as they
are. Unlike there, an image may have any height and width.

Shape letters: C channels.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from esvit.backbones.contract import Features, checked_images, drop_rates
from esvit.backbones.layers import EPS, initialise_linear
from esvit.backbones.maps import MapBackbone, MapStage
from esvit.backbones.packed import split_maps
from esvit.backbones.swin_config import SwinConfig
from esvit.backbones.swin_layers import (
    PatchEmbed,
    PatchMerging,
    Stage,
    SwinBlock,
    WindowAttention,
)
from esvit.backbones.windows import Windows


class Swin(MapBackbone):
    """Swin transformer without a classifier."""

    def __init__(self, config: SwinConfig) -> None:
        super().__init__(config.least_side)
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

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Give rows and columns of the region map of an image of so many pixels."""
        merged = 1 << (len(self.config.depths) - 1)  # patches a region, along a side
        return -(-(height // self.config.patch) // merged), -(
            -(width // self.config.patch) // merged
        )

    def features(self, batches: Sequence[Tensor]) -> list[Features]:
        """Give features of batches of images; all sizes go through each block together."""
        if torch.compiler.is_compiling() or not batches:
            return super().features(batches)
        checked = [checked_images(images, self.least_side) for images in batches]
        x, sizes = self.patch_embed.rows(checked)
        for stage in cast(Iterable[Stage], self.layers):
            for block in stage.blocks:
                x = self.run_block(block, x, *sizes)
            if stage.downsample is not None:
                x, sizes = stage.downsample.rows(x, sizes)
        regions = [maps.flatten(1, 2) for maps in split_maps(self.norm(x), sizes)]
        return [Features(part.mean(1), part) for part in regions]

    @property
    def stages(self) -> list[MapStage]:
        """The stages in their order: patches or merging, then blocks."""
        stages = [cast(Stage, stage) for stage in self.layers]
        enter = [self.patch_embed, *(stage.downsample for stage in stages)]
        blocks = ([cast(SwinBlock, block) for block in stage.blocks] for stage in stages)
        return [MapStage(cast(nn.Module, e), b) for e, b in zip(enter, blocks, strict=False)]


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

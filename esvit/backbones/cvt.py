"""CvT as EsViT publishes it: convolutions lead into stages of plain windows, without positions.

It is a variant of the convolutional transformer (Wu et al. 2021): attention stays inside windows
that never shift, and there is no position but what convolutions over zeros at the border tell.
Numbers, names and initialisation are those of the published network, whose weights load as they
are. Unlike there, an image may have any height and width.

Shape letters: C channels.
"""

from collections.abc import Iterator
from typing import cast

from torch import nn

from esvit.backbones.contract import drop_rates
from esvit.backbones.cvt_config import CvTConfig
from esvit.backbones.cvt_layers import (
    EPS,
    AttentionBranch,
    ConvEmbed,
    CvTBlock,
    MLPBranch,
    Stage,
)
from esvit.backbones.maps import MapBackbone, MapStage


class CvT(MapBackbone):
    """Convolutional transformer without a classifier."""

    def __init__(self, config: CvTConfig) -> None:
        super().__init__(config.least_side)
        self.config = config
        for number, stage in enumerate(_new_stages(config)):
            self.add_module(f"stage{number}", stage)
        self.norm = nn.LayerNorm(self.dim, EPS)
        self.apply(_initialise)

    @property
    def dim(self) -> int:
        """Channels C of a pooled or region feature."""
        return self.config.dims[-1]

    @property
    def num_heads(self) -> int:
        """Attention heads of the last block."""
        return self.config.num_heads[-1]

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Give rows and columns of the region map of an image of so many pixels."""
        rows, columns = (side - 3 >> 2 for side in (height, width))  # 7 wide, 4 apart, 2 around
        halvings = len(self.config.dims) - 1
        return (rows >> halvings) + 1, (columns >> halvings) + 1

    @property
    def stages(self) -> list[MapStage]:
        """The stages in their order."""
        names = (f"stage{number}" for number in range(len(self.config.dims)))
        stages = (cast(Stage, self.get_submodule(name)) for name in names)
        return [MapStage(stage.embed, stage.blocks) for stage in stages]


def _new_stages(config: CvTConfig) -> Iterator[Stage]:
    """Build the stages."""
    rates = iter(drop_rates(config.drop_path, sum(config.depths)))
    in_dim = 3
    for dim, depth, num_heads in zip(config.dims, config.depths, config.num_heads, strict=True):
        blocks = [
            CvTBlock(
                AttentionBranch(dim, num_heads, config.window),
                MLPBranch(dim, int(dim * config.mlp_ratio)),
                next(rates),
            )
            for _ in range(depth)
        ]
        yield Stage(ConvEmbed(in_dim, dim, is_first=in_dim == 3), blocks)
        in_dim = dim


def _initialise(module: nn.Module) -> None:
    """Draw a convolution's weights as published, the patches' included; norms keep torch's own."""
    if isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

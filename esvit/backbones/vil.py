"""ViL, the Vision Longformer (Zhang et al. 2021): class tokens and attention that slides in chunks.

Numbers, names and initialisation are those of the published network, whose weights load as they
are. Unlike there, an image may have any height and width.

Shape letters: B batch, G class tokens, H W height and width of a map, C channels, L regions
(positions of the last map), D channels of several blocks side by side.
"""

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from esvit.backbones.contract import AllOutputs, Backbone, Features, checked_images, drop_rates
from esvit.backbones.layers import EPS, initialise_linear
from esvit.backbones.sliding import SlidingAttention
from esvit.backbones.vil_attention import FullAttention, OffsetBiases, Tokens
from esvit.backbones.vil_config import ViLConfig
from esvit.backbones.vil_layers import AttentionLayer, MLPLayer, PatchEmbed, Stage


class _Trail(NamedTuple):
    """What is kept on the way to the last block.

    Attributes:
        outputs: Of the last blocks before it, as many as were asked for.
        ends: The last map (B, C, H, W) of each stage before its own.
        tokens: Its input.
    """

    outputs: list[Tokens]
    ends: list[Tensor]
    tokens: Tokens


class ViL(Backbone):
    """Vision Longformer without a classifier."""

    def __init__(self, config: ViLConfig) -> None:
        super().__init__()
        self.config = config
        for number, stage in enumerate(_new_stages(config), start=1):
            self.add_module(f"layer{number}", stage)
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

    @property
    def num_blocks(self) -> int:
        """Blocks of all stages."""
        return sum(self.config.depths)

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Give rows and columns of the region map of an image of so many pixels."""
        return height // self.config.least_side, width // self.config.least_side

    def forward(self, images: Tensor) -> Features:
        """Give pooled (B, C) and region (B, L, C) features of normalised images (B, 3, H, W).

        Pooled is the class token of the last stage, or the mean of the regions where it has none,
        as the published one.

        Raises:
            ValueError: if the images are not (B, 3, H, W), each side at least `least_side`.
        """
        tokens = self._up_to_last_block(images).tokens
        return self._features(self._run(self._last_block, tokens))

    def last_blocks(self, images: Tensor, n: int) -> Tensor:
        """Give pooled outputs (B, D) of the last n blocks, the oldest first.

        Blocks of the last stage go through the final norm, as in the published linear probe.
        """
        outputs, _, tokens = self._up_to_last_block(images, keep=self.checked_count(n) - 1)
        return self._pooled([*outputs, self._run(self._last_block, tokens)])

    def attention(self, images: Tensor) -> Tensor:
        """Give the last block's attention (B, heads, L, L) between regions.

        What a region gives to a class token is left out: where there is none, rows sum to one.
        """
        tokens = self._up_to_last_block(images).tokens
        return self._last_block[0].with_attention(*tokens)[1]

    def pyramid(self, images: Tensor) -> tuple[Tensor, ...]:
        """Give each stage's map (B, C, H, W), finest first, before the final norm."""
        _, ends, tokens = self._up_to_last_block(images)
        return *ends, self._last_map(self._run(self._last_block, tokens))

    def all_outputs(self, images: Tensor, n: int) -> AllOutputs:
        """Give all of `forward`, `attention`, `last_blocks`, `pyramid` from a single pass."""
        outputs, ends, tokens = self._up_to_last_block(images, keep=self.checked_count(n) - 1)
        attend, mlp = self._last_block
        x, attention = attend.with_attention(*tokens)
        tokens = tokens._replace(x=mlp(x))
        last_blocks = self._pooled([*outputs, tokens])
        pyramid = *ends, self._last_map(tokens)
        return AllOutputs(*self._features(tokens), attention, last_blocks, pyramid)

    @property
    def _stages(self) -> list[Stage]:
        numbers = range(1, len(self.config.dims) + 1)
        return [cast(Stage, self.get_submodule(f"layer{number}")) for number in numbers]

    @property
    def _last_block(self) -> tuple[AttentionLayer, MLPLayer]:
        return self._stages[-1].blocks[-1]

    def _up_to_last_block(self, images: Tensor, keep: int = 0) -> _Trail:
        """Run all blocks but the last and keep the outputs of the last `keep` of them."""
        outputs: deque[Tokens] = deque(maxlen=keep)
        ends: list[Tensor] = []
        x = checked_images(images, self.config.least_side)
        *earlier_stages, last_stage = self._stages
        for stage, num_class_tokens in zip(
            earlier_stages, self.config.num_class_tokens, strict=False
        ):
            tokens = stage.patches(x)
            for block in stage.blocks:
                tokens = self._run(block, tokens)
                outputs.append(tokens)
            x = tokens.as_map(num_class_tokens)
            ends.append(x)
        tokens = last_stage.patches(x)
        for block in last_stage.blocks[:-1]:
            tokens = self._run(block, tokens)
            outputs.append(tokens)
        return _Trail(list(outputs), ends, tokens)

    def _last_map(self, tokens: Tokens) -> Tensor:
        """Lay the last block's tokens out as a map (B, C, H, W)."""
        return tokens.as_map(self.config.num_class_tokens[-1])

    def _run(self, block: tuple[AttentionLayer, MLPLayer], tokens: Tokens) -> Tokens:
        """Run attention and MLP of a block."""
        attention, mlp = block
        x = self.run_block(attention, *tokens)
        return tokens._replace(x=self.run_block(mlp, x))

    def _features(self, tokens: Tokens) -> Features:
        """Normalise the last tokens and lay them out as features."""
        x, num_class_tokens = self.norm(tokens.x), self.config.num_class_tokens[-1]
        regions = x[:, num_class_tokens:]
        return Features(_pool(x, num_class_tokens), regions)

    def _pooled(self, outputs: list[Tokens]) -> Tensor:
        """Pool the outputs of the last blocks, those of the last stage normalised: (B, D)."""
        stages = [s for s, depth in enumerate(self.config.depths) for _ in range(depth)]
        pooled = []
        for stage, tokens in zip(stages[-len(outputs) :], outputs, strict=True):
            x = self.norm(tokens.x) if stage == stages[-1] else tokens.x
            pooled.append(_pool(x, self.config.num_class_tokens[stage]))
        return torch.cat(pooled, dim=-1)


def _pool(x: Tensor, num_class_tokens: int) -> Tensor:
    """Pool tokens (B, T, C): the first class token, or the mean where there is none."""
    return x[:, 0] if num_class_tokens else x.mean(1)


def _new_stages(config: ViLConfig) -> Iterator[Stage]:
    """Build the stages."""
    rates = iter(drop_rates(config.drop_path, sum(config.depths)))
    in_dims = (3, *config.dims)
    for stage, dim in enumerate(config.dims):
        patches = PatchEmbed(
            in_dims[stage], dim, config.patches[stage], config.num_class_tokens[stage]
        )
        blocks = [
            (
                AttentionLayer(dim, _new_attention(config, stage), rate),
                MLPLayer(dim, int(dim * config.mlp_ratio), rate),
            )
            for rate in islice(rates, config.depths[stage])
        ]
        yield Stage(patches, blocks)


def _new_attention(config: ViLConfig, stage: int) -> FullAttention | SlidingAttention:
    """Build the attention of a block of a stage."""
    dim, num_heads = config.dims[stage], config.num_heads[stage]
    num_class_tokens, window = config.num_class_tokens[stage], config.windows[stage]
    if not window:
        side = config.image_size // config.strides[stage]
        return FullAttention(dim, num_heads, num_class_tokens, side)
    return SlidingAttention(
        dim, num_heads, num_class_tokens, side=window, neighbours=config.neighbours
    )


def _initialise(module: nn.Module) -> None:
    """Draw a module's weights as published; the patch convolutions keep torch's own."""
    initialise_linear(module)
    if isinstance(module, (OffsetBiases, PatchEmbed)):
        for parameter in module.parameters(recurse=False):
            nn.init.trunc_normal_(parameter, std=0.02)

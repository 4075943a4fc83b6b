"""The parts of a ViL around its attention: patches, blocks and stages.

Module names are those of the published checkpoints, where a stage is one row of numbered layers:
its patches, then attention and MLP in turn.

Shape letters: B batch, G class tokens, H W height and width of a map, T = G + H * W tokens,
C channels.
"""

from collections.abc import Iterable
from itertools import chain
from typing import cast

import torch
from torch import Tensor, nn

from esvit.backbones.layers import EPS, MLP, drop_path
from esvit.backbones.remake import use_and_remake
from esvit.backbones.sliding import SlidingAttention
from esvit.backbones.vil_attention import FullAttention, Tokens


class PatchEmbed(nn.Module):
    """A map (B, C, H, W) to tokens; what is left over at the right and bottom is cut."""

    def __init__(self, in_dim: int, dim: int, patch: int, num_class_tokens: int) -> None:
        super().__init__()
        self.num_class_tokens = num_class_tokens
        if num_class_tokens:
            self.cls_token = nn.Parameter(torch.empty(1, num_class_tokens, dim))
        self.proj = nn.Conv2d(in_dim, dim, patch, patch)
        self.norm_embed = nn.LayerNorm(dim, EPS)

    def forward(self, x: Tensor) -> Tokens:
        """Give a token for each patch, behind the class tokens."""
        x = self.proj(x)
        H, W = x.shape[2:]
        x = self.norm_embed(x.flatten(2).transpose(1, 2))
        if self.num_class_tokens:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return Tokens(x, H, W)


class AttentionLayer(nn.Module):
    """Attention behind a layer norm and around a residual connection."""

    def __init__(
        self, dim: int, attention: FullAttention | SlidingAttention, drop_rate: float
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, EPS)
        self.attn = attention
        self.drop_rate = drop_rate

    def forward(self, x: Tensor, H: int, W: int) -> Tensor:
        """Give the tokens (B, T, C) after this layer."""
        return x + drop_path(
            self.attn(Tokens(self.norm(x), H, W)), self.drop_rate, training=self.training
        )

    def with_attention(self, x: Tensor, H: int, W: int) -> tuple[Tensor, Tensor]:
        """Give them as `forward` does and the attention (B, heads, H * W, H * W) as well."""
        mixed, weights = self.attn.with_weights(Tokens(self.norm(x), H, W))
        return x + drop_path(mixed, self.drop_rate, training=self.training), weights


class MLPLayer(nn.Module):
    """An MLP behind a layer norm and around a residual connection."""

    def __init__(self, dim: int, hidden_dim: int, drop_rate: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, EPS)
        self.mlp = MLP(dim, hidden_dim)
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        """Give the tokens (B, T, C) after this layer."""
        return x + drop_path(
            use_and_remake(self.norm, x, self.mlp), self.drop_rate, training=self.training
        )


class Stage(nn.Sequential):
    """Patches, then attention and MLP of each block in turn; named by their numbers."""

    def __init__(
        self, patches: PatchEmbed, blocks: Iterable[tuple[AttentionLayer, MLPLayer]]
    ) -> None:
        super().__init__(patches, *chain.from_iterable(blocks))

    @property
    def patches(self) -> PatchEmbed:
        """The way in."""
        return cast(PatchEmbed, self[0])

    @property
    def blocks(self) -> list[tuple[AttentionLayer, MLPLayer]]:
        """Attention and MLP of each block, in their order."""
        layers = list(self)[1:]
        pairs = zip(layers[::2], layers[1::2], strict=True)
        return [(cast(AttentionLayer, a), cast(MLPLayer, b)) for a, b in pairs]

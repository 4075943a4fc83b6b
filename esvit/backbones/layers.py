"""What the transformers among the backbones share: attention, MLP, stochastic depth.

Module names are those of the published checkpoints.

Shape letters: B batch, or windows of a batch, T tokens that see each other, C channels.
"""

from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit.backbones.attend import apart, attend
from esvit.backbones.lean_mlp import feed_forward
from esvit.backbones.linear import dtype_of, linear, linear_gelu
from esvit.backbones.norm import norm_before_product
from esvit.backbones.packed import MapSize
from esvit.backbones.remake import remakes, use_and_remake

EPS = 1e-6
"""Epsilon of layer norms; torch's own default would move region features by 3e-5."""


class Attention(nn.Module):
    """Multi-head self-attention among tokens (Vaswani et al. 2017, section 3.2)."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Attend among the tokens of each row.

        Args:
            x: (B * N, T, C).
            bias: (N, heads, T, T) added to the scores, the same for each image, or None.
        """
        # An exporter takes the common product apart again, with more copies than three products.
        if torch.compiler.is_exporting():
            return self.with_weights(x, bias)[0]
        return linear(self.proj, self.mix(linear(self.qkv, x), bias))

    def mix(self, qkv: Tensor, bias: Tensor | None = None) -> Tensor:
        """Do what `forward` does between its two linear layers.

        Args:
            qkv: (B * N, T, 3 * C).
            bias: As in `forward`.

        Returns:
            (B * N, T, C).
        """
        num, T, width = qkv.shape
        qkv = qkv.view(num, T, 3, self.num_heads, width // (3 * self.num_heads))
        mixed = attend(*apart(qkv), bias, qkv.shape[-1] ** -0.5)
        return mixed.transpose(1, 2).flatten(2)

    def with_weights(self, x: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Attend as `forward` does and give the weights (B * N, heads, T, T) as well."""
        query, key, value = self._apart(x)
        scores = query @ key.transpose(-2, -1)
        if bias is not None:
            scores = scores.view(-1, bias.shape[0], *scores.shape[1:]) + bias
            scores = scores.flatten(0, 1)
        weights = scores.softmax(-1)
        mixed = weights.to(value.dtype) @ value
        return linear(self.proj, mixed.transpose(1, 2).flatten(2)), weights

    def _apart(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Make the query, already scaled, key and value (B, heads, T, C / heads) of tokens.

        They come from a matrix product each, so that none has to be copied out of a common one; in
        an exported graph this is the fastest of the forms we measured.
        """
        B, T, C = x.shape
        shape = B, T, self.num_heads, C // self.num_heads
        scale = shape[-1] ** -0.5
        weight, bias = self.qkv.weight.view(3, C, C), self.qkv.bias.view(3, C)
        query = F.linear(x, weight[0] * scale, bias[0] * scale)
        key, value = F.linear(x, weight[1], bias[1]), F.linear(x, weight[2], bias[2])
        query, key, value = (y.view(shape).transpose(1, 2) for y in (query, key, value))
        return query, key, value


class MLP(nn.Module):
    """Two linear layers with an exact GELU between."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Work on the last axis of (..., C)."""
        if torch.is_grad_enabled() and remakes():
            return feed_forward(self.fc1, self.fc2, x.to(dtype_of(x)))
        return linear(self.fc2, linear_gelu(self.fc1, x))


def drop_path(x: Tensor, rate: float, *, training: bool, sizes: Sequence[MapSize] = ()) -> Tensor:
    """In training, drop x of whole samples at random with the given rate, and scale the rest up.

    Stochastic depth (Huang et al. 2016), drawn for each sample: the mean stays what it was.

    Args:
        x: (B, ...), or rows (R, C) of maps of these sizes.
        rate: In [0, 1).
        training: Whether anything is dropped.
        sizes: Of the maps.
    """
    if not training or not rate:
        return x
    num_samples = sum(size.number for size in sizes) if sizes else len(x)
    kept = torch.rand(num_samples, device=x.device) >= rate
    if sizes:
        by_size = torch.split(kept, [size.number for size in sizes])
        kept = torch.cat([_at_each(k, s) for k, s in zip(by_size, sizes, strict=True)])
    kept = kept.view(-1, *[1] * (x.dim() - 1))
    return x * (kept.to(x.dtype) / (1.0 - rate))


def _at_each(values: Tensor, size: MapSize) -> Tensor:
    """Repeat values (B,) of maps at each of their positions: (R,)."""
    return values[:, None].expand(-1, size.height * size.width).flatten()


class ResidualBlock(nn.Module):
    """Attention and an MLP, each behind a layer norm and around a residual connection."""

    def __init__(self, dim: int, attention: Attention, mlp_ratio: float, drop_rate: float) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.attn = attention
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def add(self, x: Tensor, attended: Tensor, *sizes: MapSize) -> Tensor:
        """Add to x what attention gave, then what the MLP gives, with stochastic depth.

        Args:
            x: (B, ..., C), or rows (R, C) of maps of these sizes.
            attended: Of the same shape.
            sizes: Of the maps.
        """
        x = x + drop_path(attended, self.drop_rate, training=self.training, sizes=sizes)
        norm = partial(norm_before_product, self.norm2)
        mapped = use_and_remake(norm, x, self.mlp)
        return x + drop_path(mapped, self.drop_rate, training=self.training, sizes=sizes)


def initialise_linear(module: nn.Module) -> None:
    """Draw a linear layer's weights as published; other modules keep theirs."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)

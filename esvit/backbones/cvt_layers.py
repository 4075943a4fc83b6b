"""The parts of a CvT, from convolutional embedding to block.

Module names are those of the published checkpoints. Maps are (B, H, W, C) throughout, and a 1 x 1
convolution is the linear layer that it equals: no map is ever laid out anew.

Shape letters: B batch, H W height and width of a map, C channels, M window side, N windows a map.
"""

from collections.abc import Iterable
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit.backbones.attend import attend, attend_with_weights
from esvit.backbones.layers import drop_path
from esvit.backbones.windows import (
    Layout,
    Windows,
    between_positions,
    from_windows,
    layout_of,
    to_windows,
)

EPS = 1e-5
"""Epsilon of every layer norm; unlike the other backbones, the published CvT has torch's own."""


QUICK = 1.702
"""Steepness a of the quick GELU's sigmoid."""


class ConvEmbed(nn.Module):
    """A strided convolution with overlapping patches leads into a stage (CvT, section 3.1)."""

    def __init__(self, in_dim: int, dim: int, *, is_first: bool) -> None:
        super().__init__()
        self.is_first = is_first
        kernel, stride, padding = (7, 4, 2) if is_first else (3, 2, 1)
        self.proj = nn.Conv2d(in_dim, dim, kernel, stride, padding)
        self.norm = nn.LayerNorm(dim, EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Make a map (B, H, W, C) of the images (B, 3, H, W) or a finer map."""
        return cast(Tensor, self.norm(_as_map(self.proj(x if self.is_first else _as_planes(x)))))


class ConvProjection(nn.Module):
    """Query, key and value from a position's surroundings (CvT, section 3.2)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dw = nn.Conv2d(dim, dim, 3, padding=1, groups=dim, bias=False)
        self.bn = nn.BatchNorm2d(dim)
        self.pw = nn.Conv2d(dim, 3 * dim, 1)

    def mix(self, x: Tensor) -> Tensor:
        """Convolve each channel of (B, H, W, C) and normalise over the batch.

        In evaluation the norm is a scale and a shift, which the convolution takes on.
        """
        if self.bn.training:
            return _as_map(self.bn(self.dw(_as_planes(x))))
        mean, var = self.bn.running_mean, self.bn.running_var
        assert mean is not None
        assert var is not None
        scale = self.bn.weight * (var + self.bn.eps).rsqrt()
        weight = self.dw.weight * scale[:, None, None, None]
        shift = self.bn.bias - mean * scale
        return _as_map(F.conv2d(_as_planes(x), weight, shift, padding=1, groups=len(scale)))


class Projected(NamedTuple):
    """Queries, keys and values (B * N, heads, M * M, C / heads), and where they are from."""

    query: Tensor
    key: Tensor
    value: Tensor
    layout: Layout


class ConvAttention(nn.Module):
    """Multi-head self-attention inside windows, of convolved positions."""

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.window = window
        self.scale = dim**-0.5  # as published: of all channels, not of a head's
        self.qkv = ConvProjection(dim)
        self.proj_out = nn.Conv2d(dim, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to a map of the same shape."""
        query, key, value, layout = self._project(x)
        return self._join(attend(query, key, value, None, self.scale), layout, x)

    def with_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map as `forward` does and give (B, heads, H * W, H * W) attention between positions."""
        query, key, value, layout = self._project(x)
        mixed, weights = attend_with_weights(query, key, value, None, self.scale)
        return self._join(mixed, layout, x), between_positions(weights, layout)

    def _project(self, x: Tensor) -> Projected:
        """Fill the map up to whole windows, convolve it and cut it.

        What fills up is zero before the convolution only: it is attended to, and it takes part in
        the statistics of the batch norm.
        """
        _, H, W, C = x.shape
        side = min(self.window, H, W)
        bottom, right = -H % side, -W % side
        if bottom or right:
            x = F.pad(x, (0, 0, 0, right, 0, bottom))
        cut = layout_of(Windows(side), H + bottom, W + right, x.device)
        windows = _pointwise(to_windows(self.qkv.mix(x), cut), self.qkv.pw)
        windows = torch.unflatten(windows, -1, (3, self.num_heads, C // self.num_heads))
        query, key, value = windows.permute(2, 0, 3, 1, 4).unbind(0)
        return Projected(query, key, value, layout_of(Windows(side), H, W, x.device))

    def _join(self, mixed: Tensor, layout: Layout, x: Tensor) -> Tensor:
        """Put heads and windows together to a map of the shape of x, and project."""
        mixed = mixed.transpose(1, 2).flatten(2)
        return _pointwise(from_windows(mixed, layout, x.shape[1], x.shape[2]), self.proj_out)


class QuickGELU(nn.Module):
    """A sigmoid in place of the normal distribution (Hendrycks and Gimpel 2016, section 2)."""

    def forward(self, x: Tensor) -> Tensor:
        """Work element by element."""
        return x * torch.sigmoid(QUICK * x)


class FeedForward(nn.Module):
    """Two 1 x 1 convolutions with a quick GELU between."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(dim, hidden_dim, 1), QuickGELU(), nn.Conv2d(hidden_dim, dim, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Work on the last axis of (..., C).

        As x sigmoid(ax) is silu(ax) / a, and the products before and after can multiply by a
        number on their way, one pass over the hidden values does, and the backward pass needs one
        tensor less. Runtimes know the form with the sigmoid, so that is what an exporter sees.
        """
        first, activation, second = self.net
        first, second = cast(nn.Conv2d, first), cast(nn.Conv2d, second)
        if torch.compiler.is_exporting():
            return _pointwise(activation(_pointwise(x, first)), second)
        hidden = F.silu(_scaled(x, first, QUICK, QUICK))
        return _scaled(hidden, second, 1 / QUICK, 1.0)


class AttentionBranch(nn.Module):
    """Attention behind a layer norm."""

    def __init__(self, dim: int, num_heads: int, window: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, EPS)
        self.fn = ConvAttention(dim, num_heads, window)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to a map of the same shape."""
        return cast(Tensor, self.fn(self.norm(x)))

    def with_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map as `forward` does and give the attention as well."""
        return self.fn.with_weights(self.norm(x))


class MLPBranch(nn.Module):
    """An MLP behind a layer norm."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim, EPS)
        self.fn = FeedForward(dim, hidden_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Work on the last axis of (..., C)."""
        return cast(Tensor, self.fn(self.norm(x)))


class CvTBlock(nn.Sequential):
    """Attention and an MLP, each around a residual connection; named by their numbers."""

    def __init__(self, attention: AttentionBranch, mlp: MLPBranch, drop_rate: float) -> None:
        super().__init__(attention, mlp)
        self.drop_rate = drop_rate

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to a map of the same shape."""
        attention, _ = self
        return self._finish(x, attention(x))

    def with_attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map as `forward` does and give (B, heads, H * W, H * W) attention between positions."""
        attention, _ = self
        mixed, weights = cast(AttentionBranch, attention).with_weights(x)
        return self._finish(x, mixed), weights

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Add what attention gave, then what the MLP gives."""
        _, mlp = self
        x = x + drop_path(mixed, self.drop_rate, training=self.training)
        return x + drop_path(mlp(x), self.drop_rate, training=self.training)


class Blocks(nn.Module):
    """The blocks of a stage."""

    def __init__(self, blocks: Iterable[CvTBlock]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(blocks)


class Stage(nn.Sequential):
    """What leads into a stage, and its blocks; named by their numbers."""

    def __init__(self, embed: ConvEmbed, blocks: Iterable[CvTBlock]) -> None:
        super().__init__(embed, Blocks(blocks))

    @property
    def embed(self) -> ConvEmbed:
        """The way in."""
        return cast(ConvEmbed, self[0])

    @property
    def blocks(self) -> list[CvTBlock]:
        """The blocks in their order."""
        return [cast(CvTBlock, block) for block in cast(Blocks, self[1]).layers]


def _as_planes(x: Tensor) -> Tensor:
    """See a map (B, H, W, C) as convolutions do."""
    return x.permute(0, 3, 1, 2)


def _as_map(x: Tensor) -> Tensor:
    """Undo `_as_planes`."""
    return x.permute(0, 2, 3, 1)


def _pointwise(x: Tensor, conv: nn.Conv2d) -> Tensor:
    """Apply a 1 x 1 convolution to the last axis."""
    return F.linear(x, conv.weight.flatten(1), conv.bias)


def _scaled(x: Tensor, conv: nn.Conv2d, of_product: float, of_bias: float) -> Tensor:
    """Apply a 1 x 1 convolution to the last axis, its product and its bias multiplied."""
    assert conv.bias is not None
    rows, weight = x.flatten(0, -2), conv.weight.flatten(1)
    product = torch.addmm(conv.bias, rows, weight.T, beta=of_bias, alpha=of_product)
    return product.view(*x.shape[:-1], -1)

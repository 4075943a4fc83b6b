"""The parts of a Swin transformer, from patch embedding to stage.

Module names are those of the published checkpoints. Maps are (B, H, W, C) between blocks.

Shape letters: B batch, H W height and width of a map, C channels, M window side, N windows a map.
"""

from collections.abc import Iterable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit.backbones.layers import EPS, MLP, drop_path
from esvit.backbones.windows import (
    Layout,
    Windows,
    between_positions,
    from_windows,
    layout_of,
    relative_position_index,
    to_windows,
)


class PatchEmbed(nn.Module):
    """Images (B, 3, H, W) to the first map; what is left over at the right and bottom is cut."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)
        self.norm = nn.LayerNorm(dim, EPS)

    def forward(self, images: Tensor) -> Tensor:
        """Give the map (B, H / patch, W / patch, C)."""
        return cast(Tensor, self.norm(self.proj(images).permute(0, 2, 3, 1)))


class WindowAttention(nn.Module):
    """Multi-head self-attention inside windows with a relative position bias (Swin, equation 4)."""

    def __init__(self, dim: int, num_heads: int, side: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        table = torch.empty((2 * side - 1) ** 2, num_heads)
        self.relative_position_bias_table = nn.Parameter(table)
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", relative_position_index(side))

    def forward(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Attend inside each window.

        Args:
            windows: (B * N, M * M, C).
            mask: (N, 1, M * M, M * M) added to the scores, or None.
        """
        # An exporter takes the fused operator apart, with more copies than the written-out form.
        if torch.compiler.is_exporting():
            return self.with_weights(windows, mask)[0]
        num, area, C = windows.shape
        qkv = self.qkv(windows).view(num, area, 3, self.num_heads, C // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self._bias(mask).to(query.dtype)
        bias = bias.expand(num // bias.shape[0], *bias.shape).flatten(0, 1)
        return self._join(F.scaled_dot_product_attention(query, key, value, attn_mask=bias))

    def with_weights(self, windows: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Attend as `forward` does and give the weights (B * N, heads, M * M, M * M) as well.

        Query, key and value come from a matrix product each, so that none has to be copied out of
        a common one; in an exported graph this is the fastest of the forms we measured.
        """
        num, area, C = windows.shape
        shape = num, area, self.num_heads, C // self.num_heads
        scale = shape[-1] ** -0.5
        weight, b = self.qkv.weight.view(3, C, C), self.qkv.bias.view(3, C)
        query = F.linear(windows, weight[0] * scale, b[0] * scale).view(shape).transpose(1, 2)
        key = F.linear(windows, weight[1], b[1]).view(shape).transpose(1, 2)
        value = F.linear(windows, weight[2], b[2]).view(shape).transpose(1, 2)
        bias = self._bias(mask)
        scores = query @ key.transpose(-2, -1)
        scores = scores.view(-1, bias.shape[0], *scores.shape[1:]) + bias
        weights = scores.flatten(0, 1).softmax(-1)
        return self._join(weights.to(value.dtype) @ value), weights

    def _bias(self, mask: Tensor | None) -> Tensor:
        """Add up position bias and mask: (1 or N, heads, M * M, M * M)."""
        area = self.relative_position_index.shape[0]
        rows = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = rows.view(area, area, self.num_heads).permute(2, 0, 1)[None]
        return bias if mask is None else bias + mask

    def _join(self, x: Tensor) -> Tensor:
        """Put the heads (B * N, heads, M * M, C / heads) together and project."""
        return cast(Tensor, self.proj(x.transpose(1, 2).flatten(2)))


class SwinBlock(nn.Module):
    """Window attention and an MLP, each behind a layer norm and around a residual connection."""

    def __init__(
        self, dim: int, num_heads: int, windows: Windows, mlp_ratio: float, drop_rate: float
    ) -> None:
        super().__init__()
        self.windows = windows
        self.drop_rate = drop_rate
        self.norm1 = nn.LayerNorm(dim, EPS)
        self.attn = WindowAttention(dim, num_heads, windows.side)
        self.norm2 = nn.LayerNorm(dim, EPS)
        self.mlp = MLP(dim, int(dim * mlp_ratio))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to a map of the same shape."""
        layout = self._layout(x)
        attended = self.attn(to_windows(self.norm1(x), layout), layout.mask)
        return self._finish(x, attended, layout)

    def with_attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map as `forward` does and give (B, heads, H * W, H * W) attention between positions."""
        layout = self._layout(x)
        attended, weights = self.attn.with_weights(to_windows(self.norm1(x), layout), layout.mask)
        return self._finish(x, attended, layout), between_positions(weights, layout)

    def _layout(self, x: Tensor) -> Layout:
        """Look up how the map is cut."""
        return layout_of(self.windows, x.shape[1], x.shape[2], x.device)

    def _finish(self, x: Tensor, attended: Tensor, layout: Layout) -> Tensor:
        """Add what attention gave, then what the MLP gives."""
        x = x + self._drop(from_windows(attended, layout, x.shape[1], x.shape[2]))
        return x + self._drop(self.mlp(self.norm2(x)))

    def _drop(self, x: Tensor) -> Tensor:
        """Apply stochastic depth in training."""
        return drop_path(x, self.drop_rate) if self.training and self.drop_rate else x


class PatchMerging(nn.Module):
    """Halve a map and double its channels (Swin, section 3.1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim, EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H / 2, W / 2, 2 C), rounded up: an odd side gains zeros."""
        B, H, W, C = x.shape
        if H % 2 or W % 2:
            x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
        x = x.view(B, (H + 1) // 2, 2, (W + 1) // 2, 2, C)
        # The published order of the four: down the first column, then down the second.
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)
        return cast(Tensor, self.reduction(self.norm(x)))


class Stage(nn.Module):
    """Blocks at one resolution, and what leads to the next one."""

    def __init__(self, blocks: Iterable[SwinBlock], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

"""The parts of a Swin transformer, from patch embedding to stage.

Module names are those of the published checkpoints. Between blocks are maps (B, H, W, C), or, where
several sizes go through them together, their rows (`packed.py`). A block in a graph works on maps,
which leave their number open, and so does one whose attention is asked for; any other on rows.

Shape letters: B batch, H W height and width of a map, C channels, M window side, N windows a map, R
rows.
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit.backbones.attend import is_learned
from esvit.backbones.layers import EPS, Attention, ResidualBlock
from esvit.backbones.lean_attention import Scores, attend_between, mix
from esvit.backbones.linear import dtype_of, linear
from esvit.backbones.norm import norm_before_product
from esvit.backbones.packed import (
    MapSize,
    Part,
    cut_windows,
    have_much_padding,
    parts_of,
    split_maps,
)
from esvit.backbones.remake import is_worth_keeping, remakes, use_and_remake
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
        return cast(Tensor, self.norm(self._maps(images)))

    def rows(self, batches: Sequence[Tensor]) -> tuple[Tensor, list[MapSize]]:
        """Give the rows (R, C) of images of several sizes, and the sizes of their maps."""
        maps = [self._maps(images) for images in batches]
        sizes = [MapSize(*x.shape[:3]) for x in maps]
        return self.norm(torch.cat([x.flatten(0, 2) for x in maps])), sizes

    def _maps(self, images: Tensor) -> Tensor:
        """Give the map before its norm."""
        return cast(Tensor, self.proj(images)).permute(0, 2, 3, 1)


class WindowAttention(Attention):
    """Multi-head self-attention inside windows with a relative position bias (Swin, equation 4)."""

    def __init__(self, dim: int, num_heads: int, side: int) -> None:
        super().__init__(dim, num_heads)
        table = torch.empty((2 * side - 1) ** 2, num_heads)
        self.relative_position_bias_table = nn.Parameter(table)
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", relative_position_index(side))

    def rows(self, x: Tensor, parts: Sequence[Part]) -> Tensor:
        """Attend among the slots (S, C) of windows; gives (R, C) of the rows."""
        x, scores = x.to(dtype_of(x)), self._scores(parts)
        if remakes() and not is_worth_keeping(x) and is_learned(scores.biases[0]):
            return attend_between(self.qkv, self.proj, x, scores)
        return linear(self.proj, mix(linear(self.qkv, x), scores))

    def rows_without_padding(self, x: Tensor, parts: Sequence[Part]) -> Tensor:
        """Do the same with the rows (R, C); only they go through the linear layers.

        Padding is zero before them, so behind the first it is that layer's bias, and behind the
        second it is not wanted.
        """
        qkv = cut_windows(linear(self.qkv, x), parts, self.qkv.bias)
        return linear(self.proj, mix(qkv, self._scores(parts)))

    def _scores(self, parts: Sequence[Part]) -> Scores:
        """Say what is known of the scores."""
        return Scores(self.num_heads, parts, [self.bias(part.layout.mask) for part in parts])

    def bias(self, mask: Tensor | None) -> Tensor:
        """Add the mask (N, 1, M * M, M * M) to the position bias: (1 or N, heads, M * M, M * M)."""
        area = self.relative_position_index.shape[0]
        rows = self.relative_position_bias_table[self.relative_position_index.flatten()]
        # In the order in which attention reads it: it does so once for each window.
        bias = rows.view(area, area, self.num_heads).permute(2, 0, 1)[None].contiguous()
        return bias if mask is None else bias + mask


class SwinBlock(ResidualBlock):
    """A block of attention inside windows."""

    def __init__(
        self, dim: int, num_heads: int, windows: Windows, mlp_ratio: float, drop_rate: float
    ) -> None:
        attention = WindowAttention(dim, num_heads, windows.side)
        super().__init__(dim, attention, mlp_ratio, drop_rate)
        self.windows = windows

    def forward(self, x: Tensor, *sizes: MapSize) -> Tensor:
        """Map (B, H, W, C), or rows (R, C) of maps of these sizes, to the same shape."""
        if sizes:
            return self.add(
                x, self._attend_rows(x, parts_of(self.windows, sizes, x.device)), *sizes
            )
        if not torch.compiler.is_compiling():
            rows: Tensor = self.forward(x.flatten(0, 2), MapSize(*x.shape[:3]))
            return rows.view(x.shape)
        layout, bias = self._layout_and_bias(x)
        # In an exported graph the common product of queries, keys and values is no gain.
        if layout.has_much_padding and not torch.compiler.is_exporting():
            return self.add(x, self._attend_positions(x, layout, bias))
        attended = self.attn(to_windows(self.norm1(x), layout), bias)
        return self.add(x, from_windows(attended, layout, x.shape[1], x.shape[2]))

    def with_attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map as `forward` does and give (B, heads, H * W, H * W) attention between positions."""
        layout, bias = self._layout_and_bias(x)
        attended, weights = self.attn.with_weights(to_windows(self.norm1(x), layout), bias)
        x = self.add(x, from_windows(attended, layout, x.shape[1], x.shape[2]))
        return x, between_positions(weights, layout)

    def _attend_rows(self, x: Tensor, parts: Sequence[Part]) -> Tensor:
        """Give what attention adds to rows (R, C)."""
        attention, norm = cast(WindowAttention, self.attn), partial(norm_before_product, self.norm1)
        if have_much_padding(parts):
            return use_and_remake(norm, x, lambda rows: attention.rows_without_padding(rows, parts))
        return use_and_remake(
            lambda x: cut_windows(norm(x), parts), x, lambda cut: attention.rows(cut, parts)
        )

    def _attend_positions(self, x: Tensor, layout: Layout, bias: Tensor) -> Tensor:
        """Give what attention adds to a map; only its positions go through the linear layers.

        Padding is zero before them, so behind the first it is that layer's bias, and behind the
        second it is not wanted.
        """
        qkv = linear(self.attn.qkv, self.norm1(x))
        mixed = self.attn.mix(to_windows(qkv, layout, self.attn.qkv.bias), bias)
        return linear(self.attn.proj, from_windows(mixed, layout, x.shape[1], x.shape[2]))

    def _layout_and_bias(self, x: Tensor) -> tuple[Layout, Tensor]:
        """Look up how the map is cut, and what is added to the scores."""
        layout = layout_of(self.windows, x.shape[1], x.shape[2], x.device)
        return layout, cast(WindowAttention, self.attn).bias(layout.mask)


class PatchMerging(nn.Module):
    """Halve a map and double its channels (Swin, section 3.1)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)
        self.norm = nn.LayerNorm(4 * dim, EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, H, W, C) to (B, H / 2, W / 2, 2 C), rounded up: an odd side gains zeros."""
        return self._merge(_fours(x))

    def rows(self, x: Tensor, sizes: Sequence[MapSize]) -> tuple[Tensor, list[MapSize]]:
        """Halve maps of several sizes, given as rows (R, C): rows and sizes of the halves."""
        maps = [_fours(part) for part in split_maps(x, sizes)]
        halves = [MapSize(*x.shape[:3]) for x in maps]
        return self._merge(torch.cat([x.flatten(0, 2) for x in maps])), halves

    def _merge(self, x: Tensor) -> Tensor:
        """Map (..., 4 C) to (..., 2 C)."""
        norm = partial(norm_before_product, self.norm)
        return use_and_remake(norm, x, partial(linear, self.reduction))


def _fours(x: Tensor) -> Tensor:
    """Lay side by side what is merged: (B, H, W, C) to (B, H / 2, W / 2, 4 C), rounded up."""
    B, H, W, C = x.shape
    if H % 2 or W % 2:
        x = F.pad(x, (0, 0, 0, W % 2, 0, H % 2))
    x = x.view(B, (H + 1) // 2, 2, (W + 1) // 2, 2, C)
    # The published order of the four: down the first column, then down the second.
    return x.permute(0, 1, 3, 4, 2, 5).flatten(3)


class Stage(nn.Module):
    """Blocks at one resolution, and what leads to the next one."""

    def __init__(self, blocks: Iterable[SwinBlock], downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.downsample = downsample

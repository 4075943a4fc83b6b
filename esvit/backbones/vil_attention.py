"""Attention of a ViL's later stages, of all tokens to all, and the biases that its stages share.

Module names are those of the published checkpoints.

Shape letters: B batch, G class tokens, H W height and width of a map, L = H * W its positions,
T = G + L tokens, C channels.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit.backbones.attend import attend, attend_with_weights
from esvit.backbones.windows import relative_position_index


class Tokens(NamedTuple):
    """What runs through a stage.

    Attributes:
        x: (B, T, C) class tokens, then positions row by row.
        H: Height of the map.
        W: Width of the map.
    """

    x: Tensor
    H: int
    W: int

    def as_map(self, num_class_tokens: int) -> Tensor:
        """Give the positions as a map (B, C, H, W)."""
        return torch.unflatten(self.x[:, num_class_tokens:].mT, 2, (self.H, self.W))


class OffsetBiases(nn.Module):
    """Biases of attention scores: one for each offset, and those of class tokens.

    Args:
        num_heads: Number of attention heads.
        num_class_tokens: G.
        index: int64, which row of the table belongs to which pair of positions.
        num_offsets: Rows of the table.
    """

    def __init__(
        self, num_heads: int, num_class_tokens: int, index: Tensor, num_offsets: int
    ) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.num_class_tokens = num_class_tokens
        self.local_relative_position_bias_table = nn.Parameter(torch.empty(num_offsets, num_heads))
        if num_class_tokens:
            both_ways = torch.empty(2, num_heads, num_class_tokens)
            among = torch.empty(num_heads, num_class_tokens, num_class_tokens)
            self.g2l_relative_position_bias = nn.Parameter(both_ways)
            self.g2g_relative_position_bias = nn.Parameter(among)
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", index)

    def between_positions(self, index: Tensor) -> Tensor:
        """Look up the biases (heads, S, T) of pairs of positions by an index (S, T)."""
        rows = self.local_relative_position_bias_table[index.flatten()]
        return rows.view(*index.shape, self.num_heads).permute(2, 0, 1)

    def of_classes(self, num_positions: int) -> Tensor:
        """Give the biases (heads, G, T) of class tokens to everything."""
        to_positions = self.g2l_relative_position_bias[0][..., None].expand(-1, -1, num_positions)
        return torch.cat([self.g2g_relative_position_bias, to_positions], dim=-1)

    def to_classes(self, num_positions: int) -> Tensor:
        """Give the biases (heads, L, G) of positions to class tokens."""
        return self.g2l_relative_position_bias[1][:, None].expand(-1, num_positions, -1)

    def of_everything(self, local: Tensor) -> Tensor:
        """Complete the biases (heads, L, L) between positions to (heads, T, T)."""
        if not self.num_class_tokens:
            return local
        num_positions = local.shape[-1]
        of_positions = torch.cat([self.to_classes(num_positions), local], dim=-1)
        return torch.cat([self.of_classes(num_positions), of_positions], dim=1)


class FullAttention(OffsetBiases):
    """Attention of all tokens to all; its table is laid out for a map of one size."""

    def __init__(self, dim: int, num_heads: int, num_class_tokens: int, side: int) -> None:
        index, num_offsets = relative_position_index(side), (2 * side - 1) ** 2
        super().__init__(num_heads, num_class_tokens, index, num_offsets)
        self.scale = (dim // num_heads) ** -0.5
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tokens) -> Tensor:
        """Map tokens to what is added to them, (B, T, C)."""
        query, key, value = split_heads(self.qkv(tokens.x), 3, self.num_heads)
        bias = self._bias(tokens)
        return cast(Tensor, self.proj(join_heads(attend(query, key, value, bias, self.scale))))

    def with_weights(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Map as `forward` does and give the attention (B, heads, L, L) between positions."""
        query, key, value = split_heads(self.qkv(tokens.x), 3, self.num_heads)
        bias = self._bias(tokens)
        mixed, weights = attend_with_weights(query, key, value, bias, self.scale)
        G = self.num_class_tokens
        return self.proj(join_heads(mixed)), weights[:, :, G:, G:]

    def _bias(self, tokens: Tokens) -> Tensor:
        """Give the biases (1, heads, T, T) of a map of any size.

        As published, those of another size are the matrix of all pairs, scaled like an image.
        """
        bias = self.between_positions(self.relative_position_index)
        num_positions = tokens.H * tokens.W
        if bias.shape[-1] != num_positions:
            size = num_positions, num_positions
            bias = F.interpolate(bias[None], size=size, mode="bicubic")[0]
        return self.of_everything(bias)[None]


def split_heads(x: Tensor, parts: int, num_heads: int) -> tuple[Tensor, ...]:
    """Split (B, T, parts * C) into so many (B, heads, T, C / heads)."""
    return torch.unflatten(x, -1, (parts, num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)


def join_heads(x: Tensor) -> Tensor:
    """Put heads (B, heads, T, C / heads) together: (B, T, C)."""
    return x.transpose(1, 2).flatten(2)

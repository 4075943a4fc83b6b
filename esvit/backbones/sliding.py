"""Attention that slides over a map in chunks (Vision Longformer, section 3.2).

Module names are those of the published checkpoints. Each chunk attends to itself, to its
neighbours as far as there are any, and to class tokens, which attend to everything. All chunks do
so in one product: what a chunk sees is gathered chunk by chunk, and what is not there is masked.

Shape letters: B batch, G class tokens, H W height and width of a map, L = H * W its positions,
T = G + L tokens, C channels, M chunk side, A = M * M, N chunks of a map, R neighbours that a chunk
sees, S = G + R * A that a position sees.
"""

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit.backbones.attend import attend, attend_with_weights
from esvit.backbones.chunks import SELF, Chunks, chunk_offsets, chunks_of, offsets_of
from esvit.backbones.vil_attention import OffsetBiases, Tokens, join_heads, split_heads
from esvit.backbones.vil_config import Neighbours
from esvit.backbones.windows import from_windows, to_windows


class Gathered(NamedTuple):
    """What the positions of each chunk attend with and to.

    Attributes:
        query: (B, heads * N, A, C / heads).
        key: (B, heads * N, S, C / heads) of class tokens, then neighbour by neighbour.
        value: Of the same shape.
        bias: (1, heads * N, A, S).
        seen: (N, R) int64, the chunks that each chunk sees; -1 for none.
        chunks: How the chunks lie.
    """

    query: Tensor
    key: Tensor
    value: Tensor
    bias: Tensor
    seen: Tensor
    chunks: Chunks


class SlidingAttention(OffsetBiases):
    """Attention of chunks to themselves, to their neighbours and to class tokens.

    Class tokens share weights with the positions; published files hold these under both names.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_class_tokens: int,
        *,
        side: int,
        neighbours: Neighbours,
    ) -> None:
        super().__init__(num_heads, num_class_tokens, chunk_offsets(side), (4 * side - 1) ** 2)
        self.side = side
        self.neighbours = neighbours
        self.scale = (dim // num_heads) ** -0.5
        self.query = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)
        if num_class_tokens:
            self.query_global, self.kv_global, self.proj_global = self.query, self.kv, self.proj

    def forward(self, tokens: Tokens) -> Tensor:
        """Map tokens to what is added to them, (B, T, C)."""
        query, kv = self.query(tokens.x), self.kv(tokens.x)
        which = self._draw(tokens)
        if which is None and self._is_small(tokens):
            mixed = join_heads(attend(*self._everything(query, kv, tokens), self.scale))
            return cast(Tensor, self.proj(mixed))
        found = self._gather(query, kv, tokens, which)
        local = attend(found.query, found.key, found.value, found.bias, self.scale)
        return self._join(local, query, kv, found.chunks, tokens)

    def with_weights(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """Map as `forward` does and give the attention (B, heads, L, L) between positions."""
        query, kv = self.query(tokens.x), self.kv(tokens.x)
        which = self._draw(tokens)
        if which is None and self._is_small(tokens):
            everything = self._everything(query, kv, tokens)
            mixed, weights = attend_with_weights(*everything, self.scale)
            G = self.num_class_tokens
            return self.proj(join_heads(mixed)), weights[:, :, G:, G:]
        found = self._gather(query, kv, tokens, which)
        local, weights = attend_with_weights(
            found.query, found.key, found.value, found.bias, self.scale
        )
        x = self._join(local, query, kv, found.chunks, tokens)
        return x, self._spread(weights, found)

    def _draw(self, tokens: Tokens) -> Tensor | None:
        """Choose which neighbours (R,) are seen in this pass; None for all."""
        if self.neighbours == "all" or (self.neighbours == "random" and not self.training):
            return None
        device = tokens.x.device
        itself = torch.full((1,), SELF, device=device)
        if self.neighbours == "none":
            return itself
        other = torch.randint(8, (1,), device=device)
        return torch.cat([itself, other + (other >= SELF)])

    def _is_small(self, tokens: Tokens) -> bool:
        """Whether the map is so small that all its chunks are neighbours."""
        return max(tokens.H, tokens.W) <= 2 * self.side

    def _everything(
        self, query: Tensor, kv: Tensor, tokens: Tokens
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Give query, key and value (B, heads, T, C / heads) and bias of a small map's tokens."""
        (query,) = split_heads(query, 1, self.num_heads)
        key, value = split_heads(kv, 2, self.num_heads)
        index = offsets_of(self.side, tokens.H, tokens.W, query.device)
        return query, key, value, self.of_everything(self.between_positions(index))[None]

    def _gather(self, query: Tensor, kv: Tensor, tokens: Tokens, which: Tensor | None) -> Gathered:
        """Cut queries, keys and values into chunks and collect what each chunk sees."""
        G, H, W = self.num_class_tokens, tokens.H, tokens.W
        chunks = chunks_of(self.side, H, W, query.device)
        seen = chunks.neighbours if which is None else chunks.neighbours[:, which]
        in_chunks = self._cut(kv[:, G:], 2, chunks, tokens)
        found = torch.unflatten(
            in_chunks.index_select(3, seen.flatten().clamp(min=0)), 3, seen.shape
        )
        found = found.flatten(4, 5)  # (2, B, heads, N, R * A, C / heads)
        if G:
            classes = torch.stack(split_heads(kv[:, :G], 2, self.num_heads))[:, :, :, None]
            found = torch.cat([classes.expand(*found.shape[:4], G, -1), found], dim=4)
        key, value = found.flatten(2, 3).unbind(0)
        local_query = self._cut(query[:, G:], 1, chunks, tokens)[0].flatten(1, 2)
        bias = self._chunk_bias(chunks, which)
        return Gathered(local_query, key, value, bias, seen, chunks)

    def _cut(self, x: Tensor, parts: int, chunks: Chunks, tokens: Tokens) -> Tensor:
        """Cut positions (B, L, parts * C) into chunks: (parts, B, heads, N, A, C / heads)."""
        x = to_windows(torch.unflatten(x, 1, (tokens.H, tokens.W)), chunks.layout)
        x = torch.unflatten(x, 0, (-1, len(chunks.neighbours)))
        return torch.unflatten(x, -1, (parts, self.num_heads, -1)).permute(3, 0, 4, 1, 2, 5)

    def _chunk_bias(self, chunks: Chunks, which: Tensor | None) -> Tensor:
        """Add up biases and mask of what each chunk sees: (1, heads * N, A, S)."""
        index, mask = torch.unflatten(self.relative_position_index, 1, (9, -1)), chunks.mask
        if which is not None:
            index, mask = index[:, which], mask[:, which]
        bias, mask = self.between_positions(index.flatten(1)), mask.flatten(1)
        if self.num_class_tokens:
            bias = torch.cat([self.to_classes(bias.shape[1]), bias], dim=-1)
            mask = F.pad(mask, (self.num_class_tokens, 0))
        return (bias[:, None] + mask[:, None]).flatten(0, 1)[None]

    def _join(
        self, local: Tensor, query: Tensor, kv: Tensor, chunks: Chunks, tokens: Tokens
    ) -> Tensor:
        """Put what chunks (B, heads * N, A, C / heads) and class tokens gave together; project."""
        G = self.num_class_tokens
        local = torch.unflatten(local, 1, (self.num_heads, -1)).permute(0, 2, 3, 1, 4)
        x = from_windows(local.flatten(3).flatten(0, 1), chunks.layout, tokens.H, tokens.W)
        x = x.flatten(1, 2)
        if G:
            (class_query,) = split_heads(query[:, :G], 1, self.num_heads)
            key, value = split_heads(kv, 2, self.num_heads)
            bias = self.of_classes(x.shape[1])[None]
            classes = join_heads(attend(class_query, key, value, bias, self.scale))
            x = torch.cat([classes, x], dim=1)
        return cast(Tensor, self.proj(x))

    def _spread(self, weights: Tensor, found: Gathered) -> Tensor:
        """Spread weights (B, heads * N, A, S) to (B, heads, L, L) between positions."""
        layout, area = found.chunks.layout, self.side**2
        chunk, slot = layout.positions // area, layout.positions % area
        sees = found.seen[:, :, None] == chunk  # (N, R, L)
        place = sees.int().argmax(1) * area + slot
        place = place.masked_fill(~sees.any(1), found.seen.shape[1] * area)  # a column of zeros
        weights = F.pad(weights[..., self.num_class_tokens :], (0, 1))
        weights = torch.unflatten(weights, 1, (self.num_heads, -1))
        place = place[:, None].expand(*weights.shape[:-1], -1)
        return weights.gather(-1, place).flatten(2, 3).index_select(2, layout.positions)

"""Vision transformer (ViT), the monolithic backbone that EsViT is compared with.

One stage over patches and a class token, as in DeiT and DINO, whose names, numbers and
initialisation it has: published weights load as they are. Position embeddings are interpolated, so
an image may have any height and width.

Shape letters: B batch, H W height and width of the map of patches, C channels, L = H * W regions,
T = 1 + L tokens, the class token first, D channels of several blocks side by side.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from esvit.backbones.contract import (
    AllOutputs,
    Backbone,
    Features,
    check_drop_path,
    checked_images,
    drop_rates,
)
from esvit.backbones.layers import EPS, Attention, ResidualBlock, initialise_linear
from esvit.backbones.remake import use_and_remake
from esvit.state import State, count_numbered, tensor_of

HEAD_DIM = 64
"""Channels of an attention head in all published networks but MoCo-v3's ViT-S."""


@dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """A vision transformer (Dosovitskiy et al. 2021, section 3.1; DeiT: Touvron et al. 2021).

    Attributes:
        dim: Channels C of every token.
        depth: Number of blocks.
        num_heads: Attention heads of every block.
        patch: Side of an input patch in pixels.
        mlp_ratio: Hidden width of a block's MLP over its channels.
        drop_path: Stochastic depth of the last block, in [0, 1); the rate grows linearly from 0
            at the first one. A teacher is built with 0.
        image_size: Side in pixels that the table of position embeddings has entries for; images
            of any other size get interpolated ones.
    """

    kind: ClassVar[str] = "vit"

    dim: int = 384
    depth: int = 12
    num_heads: int = 6
    patch: int = 16
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    image_size: int = 224

    def __post_init__(self) -> None:
        if min(self.dim, self.num_heads) < 1 or self.dim % self.num_heads:
            raise ValueError(f"{self.dim} channels do not divide among {self.num_heads} heads")
        if min(self.depth, self.patch) < 1:
            raise ValueError(f"depth is {self.depth}, patch {self.patch}, expected at least 1")
        check_drop_path(self.drop_path)
        if self.image_size < self.patch:
            raise ValueError(f"image_size is {self.image_size}, expected at least {self.patch}")

    @property
    def least_side(self) -> int:
        """Smallest side in pixels of an image: a patch."""
        return self.patch

    @classmethod
    def recognise(cls, state: State) -> Self | None:
        """Tell a ViT from its tensors; None if they are of something else.

        Tensors do not tell the heads: they are taken to have `HEAD_DIM` channels.

        Raises:
            ValueError: if a tensor that tells is missing, or the tensors contradict each other.
        """
        depth = count_numbered(state, "blocks.")
        if not depth:
            return None
        patches = tensor_of(state, "patch_embed.proj.weight", 4)
        num_positions = tensor_of(state, "pos_embed", 3).shape[1] - 1
        dim, side = patches.shape[0], math.isqrt(num_positions)
        if side**2 != num_positions or dim % HEAD_DIM:
            raise ValueError(
                f"not a ViT of ours: {num_positions} positions besides one class token, "
                f"{dim} channels; expected a square, and heads of {HEAD_DIM} channels"
            )
        return cls(
            dim=dim,
            depth=depth,
            num_heads=dim // HEAD_DIM,
            patch=patches.shape[-1],
            mlp_ratio=tensor_of(state, "blocks.0.mlp.fc1.weight", 2).shape[0] / dim,
            drop_path=0.0,
            image_size=side * patches.shape[-1],
        )


class PatchEmbed(nn.Module):
    """Images (B, 3, H, W) to tokens; what is left over at the right and bottom is cut."""

    def __init__(self, patch: int, dim: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, dim, patch, patch)

    def forward(self, images: Tensor) -> Tensor:
        """Give the map (B, H / patch, W / patch, C)."""
        return cast(Tensor, self.proj(images)).permute(0, 2, 3, 1)


class ViTBlock(ResidualBlock):
    """A block of attention among all tokens."""

    def __init__(self, config: ViTConfig, drop_rate: float) -> None:
        attention = Attention(config.dim, config.num_heads)
        super().__init__(config.dim, attention, config.mlp_ratio, drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Map tokens (B, T, C) to tokens."""
        return self.add(x, use_and_remake(self.norm1, x, self.attn))

    def with_attention(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Map as `forward` does and give the attention weights (B, heads, T, T) as well."""
        attended, weights = self.attn.with_weights(self.norm1(x))
        return self.add(x, attended), weights


class ViT(Backbone):
    """Vision transformer without a classifier; an image's pooled feature is its class token."""

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        num_patches = (config.image_size // config.patch) ** 2
        self.cls_token = nn.Parameter(torch.empty(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.empty(1, 1 + num_patches, config.dim))
        self.patch_embed = PatchEmbed(config.patch, config.dim)
        rates = drop_rates(config.drop_path, config.depth)
        self.blocks = nn.ModuleList(ViTBlock(config, rate) for rate in rates)
        self.norm = nn.LayerNorm(config.dim, EPS)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
        nn.init.trunc_normal_(self.cls_token, std=0.02)
        self.apply(initialise_linear)

    @property
    def dim(self) -> int:
        """Channels C of a pooled or region feature."""
        return self.config.dim

    @property
    def num_heads(self) -> int:
        """Attention heads of the last block."""
        return self.config.num_heads

    @property
    def num_blocks(self) -> int:
        """Blocks of the one stage."""
        return self.config.depth

    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Give rows and columns of patches of an image of so many pixels."""
        return height // self.config.patch, width // self.config.patch

    def forward(self, images: Tensor) -> Features:
        """Give the class token (B, C) and the patches (B, L, C), both after the final norm."""
        _, x = self._up_to_last_block(images)
        return self._features(self.run_block(self._last_block, x))

    def last_blocks(self, images: Tensor, n: int) -> Tensor:
        """Give the class tokens (B, D) after the last n blocks, each normalised, oldest first."""
        kept, x = self._up_to_last_block(images, keep=self._last(n))
        return self._class_tokens([*kept.values(), self.run_block(self._last_block, x)])

    def attention(self, images: Tensor) -> Tensor:
        """Give the last block's attention (B, heads, L, L) between patches.

        What a patch gives to the class token is left out.
        """
        _, x = self._up_to_last_block(images)
        return self._last_block.with_attention(x)[1][:, :, 1:, 1:]

    def pyramid(self, images: Tensor) -> tuple[Tensor, ...]:
        """Give the maps (B, C, H, W) after each quarter of the blocks, before the final norm.

        There is one stage, so all have the side of the patches. A network of fewer than four
        blocks gives the map after each.
        """
        kept, x = self._up_to_last_block(images, keep=self._quarters)
        kept[self.num_blocks - 1] = self.run_block(self._last_block, x)
        grid = self.grid(*images.shape[2:])
        return tuple(_as_map(kept[number], *grid) for number in self._quarters)

    def all_outputs(self, images: Tensor, n: int) -> AllOutputs:
        """Give all of `forward`, `attention`, `last_blocks`, `pyramid` from a single pass."""
        last = self._last(n)
        kept, x = self._up_to_last_block(images, keep={*last, *self._quarters})
        x, attention = self._last_block.with_attention(x)
        kept[self.num_blocks - 1] = x
        last_blocks = self._class_tokens([kept[number] for number in last])
        grid = self.grid(*images.shape[2:])
        pyramid = tuple(_as_map(kept[number], *grid) for number in self._quarters)
        return AllOutputs(*self._features(x), attention[:, :, 1:, 1:], last_blocks, pyramid)

    @property
    def _last_block(self) -> ViTBlock:
        return cast(ViTBlock, self.blocks[-1])

    @property
    def _quarters(self) -> list[int]:
        """Numbers of the blocks that end a quarter of all; of fewer than four, all numbers."""
        count = min(4, self.num_blocks)
        return [self.num_blocks * (quarter + 1) // count - 1 for quarter in range(count)]

    def _last(self, n: int) -> range:
        """Numbers of the last n blocks."""
        return range(self.num_blocks - self.checked_count(n), self.num_blocks)

    def _up_to_last_block(
        self, images: Tensor, keep: Collection[int] = ()
    ) -> tuple[dict[int, Tensor], Tensor]:
        """Run all blocks but the last: the tokens after those of some numbers, the last's input."""
        x = self._tokens(images)
        kept = {}
        for number, block in enumerate(self.blocks[:-1]):
            x = self.run_block(block, x)
            if number in keep:
                kept[number] = x
        return kept, x

    def _tokens(self, images: Tensor) -> Tensor:
        """Embed patches, put the class token before them and add where they are: (B, T, C)."""
        x = self.patch_embed(checked_images(images, self.config.least_side))
        of_class, of_patches = self._positions(x.shape[1], x.shape[2])
        of_class = (self.cls_token + of_class).expand(x.shape[0], -1, -1)
        return torch.cat([of_class.to(x.dtype), x.flatten(1, 2) + of_patches.to(x.dtype)], dim=1)

    def _positions(self, H: int, W: int) -> tuple[Tensor, Tensor]:
        """Give the position embeddings of the class token (1, 1, C) and of a map (1, H * W, C).

        As published, bicubic without antialiasing, the class token's left as it is.
        """
        of_class, table = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        side = math.isqrt(table.shape[1])
        if (side, side) == (H, W):
            return of_class, table
        squares = table.reshape(1, side, side, -1).permute(0, 3, 1, 2)
        resized = F.interpolate(squares, (H, W), mode="bicubic", align_corners=False)
        return of_class, resized.flatten(2).transpose(1, 2)

    def _features(self, x: Tensor) -> Features:
        """Normalise the last tokens and lay them out as features."""
        x = self.norm(x)
        return Features(x[:, 0], x[:, 1:])

    def _class_tokens(self, tokens: list[Tensor]) -> Tensor:
        """Normalise the class tokens of several (B, T, C) and join them: (B, D)."""
        return torch.cat([self.norm(x[:, 0]) for x in tokens], dim=-1)


def _as_map(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Lay patches out as a map (B, C, H, W), without the class token before them."""
    x = tokens[:, 1:].transpose(1, 2)
    return x.reshape(*x.shape[:2], rows, columns)

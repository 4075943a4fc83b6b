"""What defines a Swin: its numbers, and how they are told from tensors alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from esvit.backbones.contract import check_drop_path
from esvit.state import State, count_numbered, tensor_of


@dataclass(frozen=True, kw_only=True)
class SwinConfig:
    """A Swin transformer (Liu et al. 2021, section 3) as EsViT builds it.

    Attributes:
        dim: Channels C of the first stage; each later stage has twice as many.
        depths: Number of blocks of each stage.
        num_heads: Number of attention heads of each stage.
        window: Side M of an attention window, in map positions.
        patch: Side of an input patch in pixels.
        mlp_ratio: Hidden width of a block's MLP over its channels.
        drop_path: Stochastic depth of the last block, in [0, 1); the rate grows linearly from 0
            at the first one. A teacher is built with 0.
        image_size: Side in pixels for which windows are laid out: a stage whose map is then no
            larger than a window gets one window of the map's size and no shift. Images of any
            other size are accepted all the same.
        mask_padding: Whether attention ignores the positions that only fill up a window. The
            published networks attend to them, which changes every 96 px view; off by default.
    """

    kind: ClassVar[str] = "swin"

    dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    patch: int = 4
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    image_size: int = 224
    mask_padding: bool = False

    def __post_init__(self) -> None:
        if len(self.depths) != len(self.num_heads) or min(self.depths, default=0) < 1:
            raise ValueError(
                f"depths are {self.depths} and num_heads {self.num_heads}, "
                "expected as many of one as of the other, each at least 1"
            )
        for dim, num_heads in zip(self.stage_dims, self.num_heads, strict=True):
            if num_heads < 1 or dim < 1 or dim % num_heads:
                raise ValueError(f"{dim} channels do not divide among {num_heads} heads")
        if min(self.window, self.patch) < 1:
            raise ValueError(f"window is {self.window}, patch {self.patch}, expected at least 1")
        check_drop_path(self.drop_path)
        smallest = self.patch << (len(self.depths) - 1)
        if self.image_size < smallest:
            raise ValueError(f"image_size is {self.image_size}, expected at least {smallest}")

    @property
    def stage_dims(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.dim << stage for stage in range(len(self.depths)))

    @property
    def stage_sides(self) -> tuple[int, ...]:
        """Side of each stage's map at `image_size`."""
        return tuple((self.image_size // self.patch) >> stage for stage in range(len(self.depths)))

    @property
    def least_side(self) -> int:
        """Smallest side in pixels of an image: a patch."""
        return self.patch

    @classmethod
    def recognise(cls, state: State) -> Self | None:
        """Tell a Swin from its tensors; None if they are of something else.

        Raises:
            ValueError: if a tensor that tells is missing, or the tensors contradict each other.
        """
        num_stages = count_numbered(state, "layers.")
        if not num_stages:
            return None
        names = [f"layers.{stage}.blocks." for stage in range(num_stages)]
        tables = [tensor_of(state, f"{name}0.attn.{_TABLE}", 2) for name in names]
        patches = tensor_of(state, "patch_embed.proj.weight", 4)
        hidden_dim = tensor_of(state, "layers.0.blocks.0.mlp.fc1.weight", 2).shape[0]
        sides = [(round(table.shape[0] ** 0.5) + 1) // 2 for table in tables]
        return cls(
            dim=patches.shape[0],
            depths=tuple(count_numbered(state, name) for name in names),
            num_heads=tuple(table.shape[1] for table in tables),
            window=max(sides),
            patch=patches.shape[-1],
            mlp_ratio=hidden_dim / patches.shape[0],
            drop_path=0.0,
            image_size=_image_size(sides, patches.shape[-1]),
        )


_TABLE = "relative_position_bias_table"


def _image_size(sides: Sequence[int], patch: int) -> int:
    """Find the image size that windows of these sides were laid out for.

    Only a stage whose map is smaller than a window tells. Without one, 224 px as published is
    taken, or the smallest size that gives every stage a whole window.
    """
    telling = [patch * side << stage for stage, side in enumerate(sides) if side < max(sides)]
    if telling:
        return telling[0]
    return max(SwinConfig.image_size, patch * max(sides) << (len(sides) - 1))

"""What defines a CvT: its numbers, and how they are told from tensors alone."""

from dataclasses import dataclass
from typing import ClassVar, Self

from esvit.backbones.contract import check_drop_path
from esvit.state import State, count_numbered, tensor_of

HEAD_DIM = 64
"""Channels of a head of the published network; its tensors do not say how many heads there are."""


@dataclass(frozen=True, kw_only=True)
class CvTConfig:
    """A convolutional transformer (Wu et al. 2021) in windows, as EsViT builds it.

    Attributes:
        dims: Channels C of each stage.
        depths: Number of blocks of each stage.
        num_heads: Number of attention heads of each stage.
        window: Side M of an attention window, in map positions. A map with a shorter side gets
            windows of that side.
        mlp_ratio: Hidden width of a block's MLP over its channels.
        drop_path: Stochastic depth of the last block, in [0, 1); the rate grows linearly from 0
            at the first one. A teacher is built with 0.
        image_size: Side in pixels of the images that the published network was trained on.
    """

    kind: ClassVar[str] = "cvt"

    dims: tuple[int, ...] = (64, 192, 384, 768)
    depths: tuple[int, ...] = (2, 2, 6, 2)
    num_heads: tuple[int, ...] = (1, 3, 6, 12)
    window: int = 7
    mlp_ratio: float = 4.0
    drop_path: float = 0.1
    image_size: int = 224

    def __post_init__(self) -> None:
        lengths = {len(self.dims), len(self.depths), len(self.num_heads)}
        if len(lengths) != 1 or min(self.depths, default=0) < 1:
            raise ValueError(
                f"dims are {self.dims}, depths {self.depths} and num_heads {self.num_heads}, "
                "expected as many of each, at least 1 block a stage"
            )
        for dim, num_heads in zip(self.dims, self.num_heads, strict=True):
            if num_heads < 1 or dim < 1 or dim % num_heads:
                raise ValueError(f"{dim} channels do not divide among {num_heads} heads")
        if self.window < 1:
            raise ValueError(f"window is {self.window}, expected at least 1")
        check_drop_path(self.drop_path)

    @property
    def least_side(self) -> int:
        """Smallest side in pixels of an image: what the first convolution makes a position of."""
        return 3

    @classmethod
    def recognise(cls, state: State) -> Self | None:
        """Tell a CvT from its tensors; None if they are of something else.

        The window cannot be seen and is taken to be the published one, as is the width of a head.

        Raises:
            ValueError: if a tensor that tells is missing, the tensors contradict each other, or the
                channels do not divide into heads of the published width.
        """
        num_stages = count_numbered(state, "stage")
        if not num_stages:
            return None
        dims = tuple(
            tensor_of(state, f"stage{stage}.0.proj.weight", 4).shape[0]
            for stage in range(num_stages)
        )
        if any(dim % HEAD_DIM for dim in dims):
            raise ValueError(
                f"heads of a CvT of {dims} channels cannot be told: they are no multiples of "
                f"the published {HEAD_DIM} a head"
            )
        hidden_dim = tensor_of(state, "stage0.1.layers.0.1.fn.net.0.weight", 4).shape[0]
        return cls(
            dims=dims,
            depths=tuple(count_numbered(state, f"stage{s}.1.layers.") for s in range(num_stages)),
            num_heads=tuple(dim // HEAD_DIM for dim in dims),
            mlp_ratio=hidden_dim / dims[0],
            drop_path=0.0,
        )

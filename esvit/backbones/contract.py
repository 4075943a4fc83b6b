"""The backbone contract: what every backbone gives, whichever it is.

A backbone is a module below `Backbone` and a frozen dataclass that describes it, its config. All
that is common is here; a config besides has

- `kind`, a class variable: what files of weights and `build` call the architecture;
- `drop_path`: stochastic depth of the last block, 0 where there is none at all;
- `image_size`: side in pixels of the images that the published network was trained on;
- `least_side`, a property: the smallest side in pixels that an image may have;
- `recognise`, a class method: the config of a network, told from its tensors under their published
  names; None if they are of another kind.

All other fields are numbers, strings, booleans or tuples of them, as JSON can keep them.

Shape letters: B batch, H W height and width of an image in pixels, C channels of the last stage, L
regions (positions of the last map, row by row), D the channels of several blocks side by side.
"""

from abc import ABC, abstractmethod
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from esvit.backbones.remake import keep_all


class Features(NamedTuple):
    """What the two tasks of EsViT see of an image.

    Attributes:
        pooled: (B, C) one vector an image; the mean of the regions, or a class token.
        regions: (B, L, C) one vector a region, row by row.
    """

    pooled: Tensor
    regions: Tensor


class AllOutputs(NamedTuple):
    """All that a backbone can say of an image, from a single pass.

    Attributes:
        pooled: (B, C) as in `Features`.
        regions: (B, L, C) as in `Features`.
        attention: (B, heads, L, L) weights of the last block between regions.
        last_blocks: (B, D) pooled outputs of the last blocks, the oldest first.
        pyramid: A map (B, C, H, W) of each stage, finest first, or of each quarter of the blocks.
    """

    pooled: Tensor
    regions: Tensor
    attention: Tensor
    last_blocks: Tensor
    pyramid: tuple[Tensor, ...]


class Backbone(nn.Module, ABC):
    """A network without a classifier, of which features can be asked.

    Images are normalised, (B, 3, H, W), of any height and width from `least_side` on; others raise
    ValueError. Parameters have the names of the published checkpoints. `forward` changes no state
    but, in training, the running statistics of batch norms.

    Attributes:
        recompute: Whether the backward pass runs blocks again instead of keeping what they made.
    """

    def __init__(self) -> None:
        super().__init__()
        self.recompute = False

    @property
    @abstractmethod
    def dim(self) -> int:
        """Channels C of a pooled or region feature."""

    @property
    @abstractmethod
    def num_heads(self) -> int:
        """Attention heads of the last block; 0 for a network without attention."""

    @property
    @abstractmethod
    def num_blocks(self) -> int:
        """Blocks of all stages."""

    @abstractmethod
    def grid(self, height: int, width: int) -> tuple[int, int]:
        """Give rows and columns of the region map of an image of so many pixels."""

    @abstractmethod
    def forward(self, images: Tensor) -> Features:
        """Give pooled (B, C) and region (B, L, C) features."""

    def features(self, batches: Sequence[Tensor]) -> list[Features]:
        """Give features of batches of images, each batch of a size of its own.

        A backbone may do for all of them at once what does not depend on the size; `forward` and
        what hangs on it, such as hooks, need not be called.
        """
        return [self(images) for images in batches]

    @abstractmethod
    def last_blocks(self, images: Tensor, n: int) -> Tensor:
        """Give pooled outputs (B, D) of the last n blocks, the oldest first.

        Raises:
            ValueError: if there are not so many blocks.
        """

    @abstractmethod
    def attention(self, images: Tensor) -> Tensor:
        """Give the last block's attention (B, heads, L, L) between regions.

        Zero between regions that do not see each other. What a region gives to anything but
        regions (padding, class tokens) is left out: where there is no such thing, rows sum to one.
        """

    @abstractmethod
    def pyramid(self, images: Tensor) -> tuple[Tensor, ...]:
        """Give a map (B, C, H, W) of each stage, finest first, for dense tasks."""

    @abstractmethod
    def all_outputs(self, images: Tensor, n: int) -> AllOutputs:
        """Give all of `forward`, `attention`, `last_blocks`, `pyramid` from a single pass."""

    def run_block(self, block: nn.Module, x: Tensor, *size: Any) -> Tensor:
        """Run a block; if `recompute` is set, keep of it only its input for the backward pass.

        Args:
            block: Maps x, and the size if there is one, to a tensor.
            x: Its input.
            size: What a block could not tell of x: height and width of its map, or the sizes of all
                maps in it.
        """
        if not self.recompute or not torch.is_grad_enabled():
            return cast(Tensor, block(x, *size))
        if torch.compiler.is_compiling():  # a compiler runs no block's side effects again
            return cast(Tensor, checkpoint(block, x, *size, use_reentrant=False))
        norms = [module for module in block.modules() if isinstance(module, _BatchNorm)]

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return keep_all(), _again(norms)

        return cast(Tensor, checkpoint(block, x, *size, use_reentrant=False, context_fn=contexts))

    def checked_count(self, n: int) -> int:
        """Let n pass if there are so many blocks.

        Raises:
            ValueError: if not.
        """
        if not 1 <= n <= self.num_blocks:
            raise ValueError(f"n is {n}, expected 1 to {self.num_blocks} blocks")
        return n


def checked_images(images: Tensor, least_side: int) -> Tensor:
    """Let images pass that are (B, 3, H, W) and not too small.

    Raises:
        ValueError: if they are not.
    """
    if images.dim() != 4 or images.shape[1] != 3 or min(images.shape[2:]) < least_side:
        raise ValueError(
            f"images are {tuple(images.shape)}, expected (B, 3, H, W), "
            f"each side at least {least_side}"
        )
    return images


def check_drop_path(rate: float) -> None:
    """Refuse a rate of stochastic depth that is none.

    Raises:
        ValueError: if it is outside [0, 1).
    """
    if not 0.0 <= rate < 1.0:
        raise ValueError(f"drop_path is {rate}, expected [0, 1)")


def drop_rates(last: float, num_blocks: int) -> list[float]:
    """Give each block's rate of stochastic depth, growing linearly from 0 to the last one's."""
    return [last * number / max(num_blocks - 1, 1) for number in range(num_blocks)]


@contextmanager
def _again(norms: list[_BatchNorm]) -> Generator[None]:
    """Put batch norms' running statistics back afterwards: they have seen this batch before."""
    buffers = [buffer for norm in norms for buffer in norm.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        with keep_all():
            yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)

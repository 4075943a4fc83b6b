"""Which images make which step: a pure function of seed, epoch and position.

One permutation an epoch is drawn from (seed, epoch); the global batch of a step is the next slice
of it, and each rank takes its part of the slice. So nothing but the position needs to be saved: a
resumed run goes on with exactly the images that were left, on another number of ranks too. Where
the global batch stays the same, so does every step's set of images; where it changes, the epoch
goes on from the same image.

A permutation takes 8 bytes an image (80 MB for ten million) and lives only in the main process.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

WINDOW_BLOCKS = 8
"""How many blocks are mixed where reading order matters; readers keep as many in memory."""

ORDER_STREAM, VIEWS_STREAM, SHARDS_STREAM = 1, 2, 3
"""First word of every seed, so that what is drawn for one purpose tells nothing of another."""


class Position(NamedTuple):
    """Where a run is in its data: the epoch, from 0, and how many of its images are done."""

    epoch: int
    num_done: int


class Key(NamedTuple):
    """What a worker needs to make a sample: epoch and image decide its augmentation too."""

    epoch: int
    image: int


@dataclass(frozen=True, kw_only=True)
class Order:
    """The order of a run.

    Attributes:
        num_images: N.
        batch: Images a step on one rank.
        seed: Of the run; the same on all ranks.
        rank: Number of this process.
        world_size: How many there are.
        drop_last: Whether images that do not fill a last global batch are left out of an epoch
            (others take their turn in the next); if not, the batch is filled with the epoch's
            first.
        block_size: How many neighbours cost no more to read than one; then blocks of so many are
            permuted, and images mixed within eight neighbouring blocks.
    """

    num_images: int
    batch: int
    seed: int
    rank: int = 0
    world_size: int = 1
    drop_last: bool = True
    block_size: int = 1

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}, expected at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected 0 or more")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}, expected 0 to {self.world_size - 1}")
        if self.drop_last and self.num_images < self.global_batch:
            raise ValueError(
                f"{self.num_images} images do not fill one global batch of {self.global_batch}"
            )

    @property
    def global_batch(self) -> int:
        """Images a step on all ranks."""
        return self.batch * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps that a whole epoch takes."""
        return self.steps_left(Position(0, 0))

    def steps_left(self, position: Position) -> int:
        """Count the steps that the epoch of a position still has."""
        left = self.num_images - position.num_done
        return left // self.global_batch if self.drop_last else -(-left // self.global_batch)

    def at(self, step: int) -> Position:
        """Give the position before a step, counted from 0, of a run with this global batch."""
        epoch, steps_done = divmod(step, self.steps_per_epoch)
        return Position(epoch, steps_done * self.global_batch)

    def after(self, position: Position) -> Position:
        """Give the position one step later, whatever global batch led to this one."""
        epoch, num_done = self._settled(position)
        return self._settled(Position(epoch, num_done + self.global_batch))

    def batches(self, position: Position) -> Iterator[list[Key]]:
        """Give this rank's batch of every step from a position on, without end."""
        position = self._settled(position)
        while True:
            order = permutation(
                self.num_images, self.seed, position.epoch, block_size=self.block_size
            )
            epoch = position.epoch
            while position.epoch == epoch:
                start = position.num_done + self.rank * self.batch
                images = order[torch.arange(start, start + self.batch) % self.num_images]
                yield [Key(epoch, image) for image in images.tolist()]
                position = self.after(position)

    def _settled(self, position: Position) -> Position:
        """Go on to the next epoch where this one has no step left."""
        return position if self.steps_left(position) > 0 else Position(position.epoch + 1, 0)


def permutation(num_images: int, seed: int, epoch: int, *, block_size: int = 1) -> Tensor:
    """Draw the order of an epoch: (N,) int64, a function of the arguments alone."""
    (state,) = (
        np.random.SeedSequence([ORDER_STREAM, seed, epoch]).generate_state(1, np.uint64).tolist()
    )
    generator = torch.Generator().manual_seed(state >> 1)
    if block_size == 1:
        return torch.randperm(num_images, generator=generator)
    blocks = torch.randperm(-(-num_images // block_size), generator=generator)
    images = (blocks[:, None] * block_size + torch.arange(block_size)).flatten()
    images = images[images < num_images]
    window = torch.arange(num_images) // (WINDOW_BLOCKS * block_size)
    within = torch.rand(num_images, generator=generator, dtype=torch.float64)
    return images[(window + within).argsort()]

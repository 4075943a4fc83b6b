"""Which images make which step: a pure function of seed and step.

One permutation an epoch is drawn from (seed, epoch); the global batch of a step is the next slice
of it, and each rank takes its part of the slice. So nothing but the step needs to be saved: a
resumed run goes on with exactly the images that were left, on another number of ranks too.

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
        block_size: How many neighbours cost no more to read than one; then blocks of so many are
            permuted, and images mixed within eight neighbouring blocks.
    """

    num_images: int
    batch: int
    seed: int
    rank: int = 0
    world_size: int = 1
    block_size: int = 1

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise ValueError(f"batch is {self.batch}, expected at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected 0 or more")
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f"rank is {self.rank}, expected 0 to {self.world_size - 1}")
        if self.num_images < self.global_batch:
            raise ValueError(
                f"{self.num_images} images do not fill one global batch of {self.global_batch}"
            )

    @property
    def global_batch(self) -> int:
        """Images a step on all ranks."""
        return self.batch * self.world_size

    @property
    def steps_per_epoch(self) -> int:
        """Whole global batches; the images left over differ from epoch to epoch."""
        return self.num_images // self.global_batch

    def batches(self, step: int) -> Iterator[list[Key]]:
        """Give this rank's batch of every step from one on, counted from 0, without end."""
        epoch, done = divmod(step, self.steps_per_epoch)
        while True:
            order = permutation(self.num_images, self.seed, epoch, block_size=self.block_size)
            for number in range(done, self.steps_per_epoch):
                start = number * self.global_batch + self.rank * self.batch
                yield [Key(epoch, image) for image in order[start : start + self.batch].tolist()]
            epoch, done = epoch + 1, 0


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

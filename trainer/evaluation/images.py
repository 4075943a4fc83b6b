"""Images as an evaluation sees them: the service's own decoder and preprocessing, in workers.

Shapes: B images, S the side of the model's square.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from service.contract import PreprocessSpec
from service.preprocess import least_side, preprocess
from trainer.data.images import BAD, TRAINING_LIMITS, ImageRules, read_patiently
from trainer.data.loader import LoaderConfig, start_worker
from trainer.data.sources import Source


class Squares(NamedTuple):
    """A batch of images: (B, 3, S, S) uint8, and where each stands in the list asked for."""

    pixels: Tensor
    positions: list[int]


def preprocessing(image_size: int) -> PreprocessSpec:
    """Keep the published proportion of crop to shorter side, 224 of 256, at any size."""
    return PreprocessSpec(resize=round(image_size * 256 / 224), crop=image_size)


@dataclass(frozen=True)
class SquareDataset(Dataset[tuple[Tensor, int] | None]):
    """The images of some indices of a source, resized and cut; None for one that is bad."""

    source: Source
    indices: Sequence[int]
    spec: PreprocessSpec

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int] | None:
        """Give pixels (3, S, S) uint8 and the position."""
        rules = ImageRules(limits=TRAINING_LIMITS, least_side=least_side(self.spec))
        try:
            decoded = rules.decode(read_patiently(self.source.read, self.indices[position]))
        except BAD:
            return None
        pixels = preprocess(decoded, self.spec, "crop").pixels
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous(), position


def load_squares(dataset: SquareDataset, batch: int, loader: LoaderConfig) -> Generator[Squares]:
    """Give the good images in their order; bad ones are left out."""
    batches: DataLoader[Squares] = DataLoader(
        dataset,  # type: ignore[arg-type]  # collating changes the type
        batch_size=batch,
        collate_fn=_collate,
        num_workers=loader.num_workers,
        timeout=loader.timeout_s if loader.num_workers else 0,
        worker_init_fn=start_worker,
        generator=torch.Generator(),
    )
    yield from (squares for squares in batches if squares.positions)


def _collate(samples: Sequence[tuple[Tensor, int] | None]) -> Squares:
    """Stack those that are good."""
    good = [sample for sample in samples if sample is not None]
    if not good:
        return Squares(torch.empty(0), [])
    return Squares(torch.stack([pixels for pixels, _ in good]), [place for _, place in good])

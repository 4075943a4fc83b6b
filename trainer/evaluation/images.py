"""Images as an evaluation sees them: the service's own decoder and preprocessing, in workers.

Shapes: B images, S the side of the model's square.
"""

from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from service.contract import PreprocessSpec
from service.images import DecodedImage
from service.preprocess import Fit, least_side, preprocess
from trainer.data.images import BAD, TRAINING_LIMITS, ImageRules, read_patiently
from trainer.data.loader import LoaderConfig, start_worker
from trainer.data.sources import Source


class Squares(NamedTuple):
    """A batch of images: (B, ..., 3, S, S) uint8, and where each stands in the list asked for."""

    pixels: Tensor
    positions: list[int]


Squared = Dataset[tuple[Tensor, int] | None]
"""Gives pixels (..., 3, S, S) uint8 and the position; None for an image that is bad."""


def preprocessing(image_size: int) -> PreprocessSpec:
    """Keep the published proportion of crop to shorter side, 224 of 256, at any size."""
    return PreprocessSpec(resize=round(image_size * 256 / 224), crop=image_size)


@dataclass(frozen=True)
class SquareDataset(Squared):
    """The images of some indices of a source, resized and cut."""

    source: Source
    indices: Sequence[int]
    spec: PreprocessSpec
    fit: Fit = "crop"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> tuple[Tensor, int] | None:
        """Give pixels (3, S, S) uint8 and the position."""
        decoded = decode(self.source, self.indices[position], least_side(self.spec))
        if decoded is None:
            return None
        pixels = preprocess(decoded, self.spec, self.fit).pixels
        return torch.from_numpy(np.array(pixels)).permute(2, 0, 1).contiguous(), position


def decode(source: Source, index: int, least_side: int) -> DecodedImage | None:
    """Decode an image of a source, no smaller than the shorter side given; None if it is bad."""
    rules = ImageRules(limits=TRAINING_LIMITS, least_side=least_side)
    try:
        return rules.decode(read_patiently(source.read, index))
    except BAD:
        return None


def load_squares(
    dataset: Squared, batches: Iterable[list[int]], loader: LoaderConfig
) -> Generator[Squares]:
    """Give batches of the good images at the positions asked for; bad ones are left out."""
    loaded: DataLoader[Squares] = DataLoader(
        dataset,  # type: ignore[arg-type]  # collating changes the type
        batch_sampler=batches,
        collate_fn=_collate,
        num_workers=loader.num_workers,
        timeout=loader.timeout_s if loader.num_workers else 0,
        worker_init_fn=start_worker,
        generator=torch.Generator(),
    )
    yield from loaded


def in_batches(positions: range, batch: int) -> list[list[int]]:
    """Cut positions into batches; the last may be smaller."""
    return [list(positions[start : start + batch]) for start in range(0, len(positions), batch)]


def _collate(samples: Sequence[tuple[Tensor, int] | None]) -> Squares:
    """Stack those that are good."""
    good = [sample for sample in samples if sample is not None]
    if not good:
        return Squares(torch.empty(0), [])
    return Squares(torch.stack([pixels for pixels, _ in good]), [place for _, place in good])

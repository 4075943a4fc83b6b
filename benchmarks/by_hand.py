"""What features made by hand find: what a trained model's retrieval has to beat.

    python -m benchmarks.by_hand --data data/emoji --identity concept --across vendor \
        --where variant= --ask split=val 'label!=flags'

Takes the options of `trainer.evaluate retrieval` and measures as it does: pixels, 28 x 28, and
histograms of oriented gradients, both of pictures of 64 x 64.
"""

import json
from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from torch import Tensor

from benchmarks.hog import hog
from service.contract import PreprocessSpec
from trainer.evaluation.config import RetrievalConfig
from trainer.evaluation.retrieval import measure_retrieval
from trainer.evaluation.subject import Frozen, Subject

SPEC = PreprocessSpec(resize=64, crop=64)


def pixels_of(images: Tensor) -> Tensor:
    """Give (B, 2352) of (B, 3, 64, 64) uint8: the picture made small, less its mean."""
    small = F.interpolate(images.float(), (28, 28), mode="area").flatten(1)
    return small - small.mean(dim=1, keepdim=True)


def gradients_of(images: Tensor) -> Tensor:
    """Give (B, 2916) of (B, 3, 64, 64) uint8."""
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    grey = (images.float() * weights).sum(dim=1).numpy()
    return torch.stack([torch.from_numpy(hog(one)).float() for one in grey])


def measure(name: str, features: Callable[[Tensor], Tensor], config: RetrievalConfig) -> None:
    """Print one line of JSON."""
    frozen = Frozen(
        file=name,
        network=None,
        arch=name,
        spec=SPEC,
        digest=name,
        arithmetic="by hand",
        run=lambda images, output: features(images),
    )
    found = measure_retrieval(config, Subject(frozen, config, Console(stderr=True)))
    print(json.dumps({"features": name} | found))


def main() -> None:
    """Run the command."""
    config = tyro.cli(RetrievalConfig, prog="python -m benchmarks.by_hand")
    config = replace(config, use_cache=False)  # whose key does not know this code
    measure("pixels", pixels_of, config)
    measure("gradients", gradients_of, config)


if __name__ == "__main__":
    main()

"""A frozen network that images are shown to.

Shapes: B images, S the side of the model's square, D numbers an image.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from torch import Tensor

from service.contract import Output, PreprocessSpec
from trainer.data.loader import LoaderConfig
from trainer.evaluation.choice import Chosen
from trainer.evaluation.config import ImagesConfig
from trainer.evaluation.features import Extraction, Rows, extract
from trainer.evaluation.images import Squared, SquareDataset, Squares

Run = Callable[[Tensor, Output], Tensor]
"""Takes (B, 3, S, S) uint8 on the CPU and gives one output, float32 on the CPU."""


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """A network that only answers.

    Attributes:
        file: Where it is from.
        network: Which of two it is, where there are two.
        arch: Name of its backbone, as far as it has one.
        spec: How an image becomes its pixels.
        digest: SHA-256 of what it is made of.
        arithmetic: What computes, and in which precision; part of what makes features equal.
        run: Asks it.
    """

    file: str
    network: str | None
    arch: str
    spec: PreprocessSpec
    digest: str
    arithmetic: str
    run: Run

    def describe(self) -> dict[str, Any]:  # JSON
        """Say which network it is, for the answer."""
        return {
            "file": self.file,
            "network": self.network,
            "arch": self.arch,
            "sha256": self.digest,
            "image_size": self.spec.crop,
            "arithmetic": self.arithmetic,
        }


@dataclass(frozen=True)
class Subject:
    """A frozen network that images are shown to.

    Attributes:
        frozen: The network.
        config: How images come to it.
        console: Where progress is shown.
    """

    frozen: Frozen
    config: ImagesConfig
    console: Console

    def features(self, images: Chosen, output: Output, *, name: str) -> Rows:
        """Give one output of the network for images; name is what progress is shown of."""
        dataset = SquareDataset(images.source, images.indices, self.frozen.spec, self.config.fit)
        return self.work_out(
            dataset,
            images,
            lambda squares: self.frozen.run(squares.pixels, output),
            {"output": output, "fit": self.config.fit},
            name=name,
        )

    def work_out(
        self,
        dataset: Squared,
        images: Chosen,
        compute: Callable[[Squares], Tensor],
        key: Mapping[str, Any],  # JSON
        *,
        name: str,
    ) -> Rows:
        """Make numbers of images, or take them from the cache.

        Args:
            dataset: Gives the images by position.
            images: Which they are.
            compute: Makes (B, D) of a batch.
            key: What the numbers depend on beside network and images.
            name: What progress is shown of.
        """
        of_network = {
            "weights": self.frozen.digest,
            "arithmetic": self.frozen.arithmetic,
            "preprocess": asdict(self.frozen.spec),
        }
        how = Extraction(
            compute=compute,
            key={**of_network, **key},
            batch=self.config.batch,
            loader=LoaderConfig(num_workers=self.config.num_workers),
            cache=self.config.cache if self.config.use_cache else None,
            console=self.console,
        )
        return extract(dataset, images.source, images.indices, how, name=name)

    def describe(self) -> dict[str, Any]:  # JSON
        """Say which network it is, for the answer."""
        return self.frozen.describe() | {"fit": self.config.fit}

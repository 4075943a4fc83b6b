"""What the teacher can do while it still learns: correspondence accuracy, and k-NN with labels.

The same images every time, so that the numbers of a run can be compared. All processes share the
work and get the same answer.
"""

import logging
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from esvit.backbones import Features
from esvit.model import evaluating
from trainer import distributed
from trainer.config import PretrainConfig
from trainer.data.sources import Source, open_source
from trainer.evaluation import correspondence, knn
from trainer.evaluation.images import (
    SquareDataset,
    Squares,
    in_batches,
    load_squares,
    preprocessing,
)
from trainer.feed import loader_of
from trainer.pixel_ops import normalize

logger = logging.getLogger(__name__)

NUM_NEIGHBOURS = 20
BANK_PER_QUERY = 4
EVALUATION_STREAM = 6
"""First word of the seed of the choice of images."""


Pooled = dict[str, Tensor]
"""Features and labels of batches: `features/N` (B, C) and `labels/N` (B,)."""


class Labelled(NamedTuple):
    """This process's share of some images, and their classes' numbers in training, -1 for none."""

    dataset: SquareDataset
    labels: list[int]


class Examiner:
    """Measures a teacher every so many epochs."""

    def __init__(
        self, config: PretrainConfig, training: Source | None, device: torch.device
    ) -> None:
        """Choose the images.

        Args:
            config: Of the run.
            training: Its images; None for a stream.
            device: Where the teacher is.

        Raises:
            FileNotFoundError: if there is nothing at monitor.evaluate_path.
        """
        self._every, self._epochs = config.monitor.evaluate_every, config.schedule.epochs
        self._loader, self._device = loader_of(config), device
        self._spec = preprocessing(config.crops.global_size)
        self._batch = config.compute.images_per_pass
        self._classes = training.index.classes if training else ()
        path, wanted = config.monitor.evaluate_path, config.monitor.evaluate_images
        source = training if path is None else open_source(path)
        self._queries: Labelled | None = None
        self._bank: Labelled | None = None
        if source is None and self._every:
            logger.info("a stream is evaluated on --monitor.evaluate-path only; none is given")
        if source is None or not self._every:
            return
        order = _shuffled(len(source), config.seed)
        if path is None:
            wanted = max(1, min(wanted, len(order) // (1 + BANK_PER_QUERY)))
        self._queries = self._share(source, order[:wanted])
        if training is not None and len(self._classes) > 1:
            others = order[wanted:] if path is None else _shuffled(len(training), config.seed)
            self._bank = self._share(training, others[: wanted * BANK_PER_QUERY])

    def is_due(self, epoch: int) -> bool:
        """Tell whether to measure after so many epochs; the last one always counts."""
        return self._queries is not None and (epoch == self._epochs or epoch % self._every == 0)

    @torch.no_grad()
    def measure(self, backbone: nn.Module) -> dict[str, float]:
        """Give the metrics; all processes call it together.

        Args:
            backbone: Maps pixels (B, 3, S, S) to `Features`; in evaluation mode for the time of
                the call.
        """
        assert self._queries is not None
        with evaluating(backbone):
            metrics, of_queries = self._correspondence(backbone, self._queries)
            if self._bank is not None:
                of_bank: Pooled = {}
                for number, (squares, features) in enumerate(self._run_all(backbone, self._bank)):
                    of_bank |= _pooled(number, self._bank, squares, features)
                metrics |= self._knn(of_queries, of_bank)
        return metrics

    def _share(self, source: Source, indices: list[int]) -> Labelled:
        """Take this process's share of some images of a source."""
        mine = indices[distributed.rank() :: distributed.world_size()]
        numbers = {name: number for number, name in enumerate(self._classes)}
        names = [*source.index.classes, ""]  # the label -1 of an image without class finds ""
        labels = [numbers.get(names[source.label(i)], -1) for i in mine]
        return Labelled(SquareDataset(source, mine, self._spec), labels)

    def _correspondence(
        self, backbone: nn.Module, queries: Labelled
    ) -> tuple[dict[str, float], Pooled]:
        """Average over the images of all processes; give what k-NN wants of this one's, too."""
        sums, pooled = torch.zeros(4), Pooled()
        for number, (squares, features) in enumerate(self._run_all(backbone, queries)):
            pooled |= _pooled(number, queries, squares, features)
            numbers = [queries.dataset.indices[position] for position in squares.positions]
            copies = correspondence.mirrored_copies(squares.pixels, numbers)
            found = correspondence.measure(
                features.regions, self._run(backbone, copies).regions, self._spec.crop
            )
            sums += torch.stack([*found, torch.ones_like(found.accuracy)]).sum(dim=1).cpu()
        accuracy, distance, following, count = distributed.sum_over_ranks(sums).tolist()
        if not count:
            logger.warning("none of the images for evaluation can be read")
            return {}, pooled
        metrics = {
            "eval_correspondence": accuracy / count,
            "eval_correspondence_px": distance / count,
            "eval_correspondence_next": following / count,
        }
        return metrics, pooled

    def _knn(self, of_queries: Pooled, of_bank: Pooled) -> dict[str, float]:
        """Collect the features of all processes and let neighbours vote."""
        queries, labels = _of_all_processes(of_queries)
        bank, bank_labels = _of_all_processes(of_bank)
        if not len(labels) or not len(bank_labels):
            return {}
        votes = knn.votes(
            queries, bank, bank_labels, k=NUM_NEIGHBOURS, num_classes=len(self._classes)
        )
        return {"eval_knn": knn.top1(votes, labels)}

    def _run_all(self, backbone: nn.Module, images: Labelled) -> Iterator[tuple[Squares, Features]]:
        """Run this process's share of some images."""
        batches = in_batches(range(len(images.dataset)), self._batch)
        for squares in load_squares(images.dataset, batches, self._loader):
            if squares.positions:
                yield squares, self._run(backbone, squares.pixels)

    def _run(self, backbone: nn.Module, pixels: Tensor) -> Features:
        """Normalise (B, 3, S, S) uint8 and run the backbone in float32."""
        on_device = pixels.to(self._device)
        features: Features = backbone(normalize(on_device, self._spec.mean, self._spec.std))
        return features


def _pooled(number: int, images: Labelled, squares: Squares, features: Features) -> Pooled:
    """Give a batch's pooled features and labels under its number."""
    labels = [images.labels[position] for position in squares.positions]
    return {
        f"features/{number}": features.pooled.float().cpu(),
        f"labels/{number}": torch.tensor(labels),
    }


def _of_all_processes(rows: Pooled) -> tuple[Tensor, Tensor]:
    """Give pooled features (N, C) and labels (N,) of the labelled images of all processes."""
    of_all = distributed.gather_states(rows)
    labels_of_all = [x for name, x in of_all.items() if "/labels/" in name]
    if not labels_of_all:
        return torch.empty(0), torch.empty(0, dtype=torch.int64)
    every = torch.cat(labels_of_all)
    features_of_all = torch.cat([x for name, x in of_all.items() if "/features/" in name])
    return features_of_all[every >= 0], every[every >= 0]


def _shuffled(count: int, seed: int) -> list[int]:
    """Give the numbers below count in an order that only the run's seed decides."""
    order: list[int] = np.random.default_rng([EVALUATION_STREAM, seed]).permutation(count).tolist()
    return order

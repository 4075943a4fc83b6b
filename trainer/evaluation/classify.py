"""k-NN classification of a data set: the published protocol from images to numbers."""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.evaluation.choice import Labels, open_split
from trainer.evaluation.config import KnnConfig
from trainer.evaluation.features import Rows
from trainer.evaluation.knn import neighbours, vote
from trainer.evaluation.metrics import mean_per_class, roc_auc
from trainer.evaluation.subject import Subject
from trainer.expect import expect

LEAST_TEMPERATURE = 0.02
"""Below it, votes overflow."""

_BLOCK = 1024


class Votes(NamedTuple):
    """What is kept of N queries' votes.

    Attributes:
        ranked: (N, 5) int64, the classes with most votes; as many as there are, if fewer.
        share: (N,) share of the votes that the last class has, for sets of two classes.
    """

    ranked: Tensor
    share: Tensor


def measure_knn(config: KnnConfig, subject: Subject) -> dict[str, Any]:  # JSON
    """Classify the test images by their neighbours among the training images.

    Raises:
        FileNotFoundError: if images are missing.
        ValueError: if they have no labels, or none can be read.
    """
    check(config)
    split = open_split(config, config.test, Labels(config.labels))
    bank = subject.features(split.train, "embedding", name="train")
    queries = subject.features(split.test, "embedding", name="test")
    bank_labels = split.train_targets[bank.positions]
    labels = split.test_targets[queries.positions]
    votes = collect_votes(bank, bank_labels, queries, len(split.classes), config)
    return {
        "train_images": len(bank),
        "test_images": len(queries),
        "unreadable": bank.asked + queries.asked - len(bank) - len(queries),
        "test_images_of_unknown_class": split.unknown,
        "classes": len(split.classes),
        "temperature": config.temperature,
        "k": {str(k): score(found, labels, len(split.classes)) for k, found in votes.items()},
    }


def check(config: KnnConfig) -> None:
    """Refuse numbers that make no sense, before any work.

    Raises:
        ValueError: if there are some.
    """
    expect(min(config.k, default=0) >= 1, "1 or more", k=config.k)
    expect(
        LEAST_TEMPERATURE <= config.temperature < math.inf,
        f"{LEAST_TEMPERATURE} or more",
        temperature=config.temperature,
    )


def collect_votes(
    bank: Rows, bank_labels: Tensor, queries: Rows, num_classes: int, config: KnnConfig
) -> dict[int, Votes]:
    """Let the bank (M rows) vote on the queries (N rows), block by block, for each k."""
    kept: dict[int, list[Votes]] = {k: [] for k in config.k}
    blocks = (block for part in queries.parts for block in torch.split(part, _BLOCK))
    for block in blocks:
        found = neighbours(block, bank.parts, max(config.k))
        for k in config.k:
            nearest = type(found)(found.cosines[:, :k], found.indices[:, :k])
            votes = vote(
                nearest, bank_labels, num_classes=num_classes, temperature=config.temperature
            )
            ranked = votes.topk(min(5, num_classes), dim=1).indices
            kept[k].append(Votes(ranked, votes[:, -1] / votes.sum(1)))
    return {k: Votes(*map(torch.cat, zip(*blocks, strict=True))) for k, blocks in kept.items()}


def score(votes: Votes, labels: Tensor, num_classes: int) -> dict[str, float]:
    """Hold votes against the true classes (N,); ROC-AUC where there are two classes."""
    first = votes.ranked[:, 0]
    scores = {
        "top1": float((first == labels).float().mean()),
        "top5": float((votes.ranked == labels[:, None]).any(1).float().mean()),
        "balanced": mean_per_class(first, labels, num_classes),
    }
    if num_classes == 2 and 0 < int(labels.sum()) < len(labels):
        scores["roc_auc"] = roc_auc(votes.share, labels == 1)
    return scores

"""Linear probes: how much a linear classifier reads off the frozen features.

The features are the pooled outputs of the last four blocks (EsViT, section 4.1), worked out once.
Two ways to train on them: the published SGD, and L-BFGS with a search for the L2 penalty.

Shapes: N samples, D features, K classes.
"""

import copy
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional as F

from trainer.config import ComputeConfig
from trainer.devices import choose_device
from trainer.evaluation.choice import Labels, open_split
from trainer.evaluation.config import LinearConfig
from trainer.evaluation.features import PART, Rows
from trainer.evaluation.logistic import (
    Linear,
    Samples,
    best_strength,
    fit,
    scale_of,
    search,
    zero,
)
from trainer.evaluation.metrics import map11, mean_per_class, mean_roc_auc
from trainer.evaluation.progress import show_progress
from trainer.evaluation.sgd import Plan, Probe, train_probes
from trainer.evaluation.subject import Subject
from trainer.expect import expect

VALIDATION_STREAM = 9
"""First word of the seed of the choice of validation images; crops have 8."""

_MOST_FITS = 16


class Task(NamedTuple):
    """Features and what they are of: (N,) int64 classes, or (N, K) bool for any number of them."""

    train: Rows
    train_targets: Tensor
    test: Rows
    test_targets: Tensor
    num_classes: int
    device: torch.device


def measure_linear(config: LinearConfig, subject: Subject) -> dict[str, Any]:  # JSON
    """Train linear classifiers on the training images and ask them of the test images.

    Raises:
        FileNotFoundError: if images are missing.
        ValueError: if they have no labels, none can be read, or numbers make no sense.
    """
    check(config)
    split = open_split(config, config.test, Labels(config.labels, config.multi_label))
    train = subject.features(split.train, "last_blocks", name="train")
    test = subject.features(split.test, "last_blocks", name="test")
    targets = split.train_targets[train.positions], split.test_targets[test.positions]
    device = choose_device(ComputeConfig(device=config.device))
    task = Task(train, targets[0], test, targets[1], len(split.classes), device)
    answer: dict[str, Any] = {
        "train_images": len(train),
        "test_images": len(test),
        "unreadable": train.asked + test.asked - len(train) - len(test),
        "test_images_of_unknown_class": split.unknown,
        "classes": len(split.classes),
        "features": train.parts[0].shape[1],
    }
    if config.method in ("both", "sgd"):
        answer["sgd"] = run_sgd(task, config, subject.console)
    if config.method in ("both", "lbfgs"):
        answer["lbfgs"] = run_lbfgs(task, config, subject.console)
    return answer


def check(config: LinearConfig) -> None:
    """Refuse numbers that make no sense, before any work.

    Raises:
        ValueError: if there are some.
    """
    expect(len(config.base_lr) >= 1, "one or more", base_lr=config.base_lr)
    for base_lr in config.base_lr:
        expect(0 < base_lr < math.inf, "over 0", base_lr=base_lr)
    expect(config.epochs >= 1, "1 or more", epochs=config.epochs)
    expect(config.sgd_batch >= 1, "1 or more", sgd_batch=config.sgd_batch)
    expect(0 < config.validation < 1, "a share between 0 and 1", validation=config.validation)
    if config.multi_label and config.labels == "class":
        raise ValueError("--multi-label needs --labels: a folder is one class")


def run_sgd(task: Task, config: LinearConfig, console: Console) -> dict[str, Any]:  # JSON
    """Train by the published SGD; report each learning rate's last epoch and its best."""
    plan = Plan(config.base_lr, config.epochs, config.sgd_batch, config.seed, task.device)
    steps = config.epochs * -(-len(task.train) // config.sgd_batch)
    best: dict[float, tuple[float, Probe]] = {}
    with show_progress(console, "SGD", steps, "updates") as advance:
        for probes in train_probes(task.train, task.train_targets, task.num_classes, plan, advance):
            for probe in probes:
                found = headline(_scores(probe, task.test), task.test_targets)
                if probe.base_lr not in best or found > best[probe.base_lr][0]:
                    best[probe.base_lr] = found, copy.deepcopy(probe)
    runs = [
        {
            "base_lr": last.base_lr,
            "last": measure(_scores(last, task.test), task.test_targets),
            "best": {
                "epoch": best[last.base_lr][1].epoch,
                **measure(_scores(best[last.base_lr][1], task.test), task.test_targets),
            },
        }
        for last in probes
    ]
    return {"epochs": config.epochs, "batch": config.sgd_batch, "runs": runs}


def run_lbfgs(task: Task, config: LinearConfig, console: Console) -> dict[str, Any]:  # JSON
    """Search for the penalty on a share of the training images, then train on all of them."""
    places = hold_out(task.train_targets, config.validation, config.seed)
    kept = torch.ones(len(task.train), dtype=torch.bool)
    kept[places] = False
    learnt = _samples(task, kept.nonzero().flatten())
    held_out = _samples(task, places)
    start = zero(scale_of(learnt.parts), task.num_classes, task.device)
    solved: dict[float, Linear] = {}
    with show_progress(console, "L-BFGS", _MOST_FITS, "fits") as advance:

        def score(strength: float) -> float:
            nearest = min(solved, key=lambda s: abs(np.log(s / strength)), default=None)
            solved[strength] = fit(learnt, solved[nearest] if nearest else start, strength)
            advance(1)
            return headline(solved[strength].scores(held_out.parts), held_out.targets)

        asked = search(score)
        strength = best_strength(asked)
        everything = Samples(task.train.parts, task.train_targets)
        fresh = zero(scale_of(everything.parts), task.num_classes, task.device)
        found = fit(everything, fresh, strength)
        advance(1)
    return {
        "l2": strength,
        "validation_images": len(places),
        "validation": asked[strength],
        "searched": sorted(asked.items()),
        **measure(found.scores(task.test.parts), task.test_targets),
    }


def hold_out(targets: Tensor, share: float, seed: int) -> Tensor:
    """Draw the places of a share of the samples: of each class alike, none wholly.

    Raises:
        ValueError: if there are too few to leave some on both sides.
    """
    rng = np.random.default_rng([VALIDATION_STREAM, seed])
    if targets.dim() == 2:
        groups = [np.arange(len(targets))]
    else:
        groups = [np.flatnonzero(targets.numpy() == k) for k in range(int(targets.max()) + 1)]
    chosen = [
        rng.permutation(group)[: min(round(share * len(group)), len(group) - 1)]
        for group in groups
        if len(group)
    ]
    places = np.sort(np.concatenate(chosen))
    if not len(places):
        raise ValueError(f"{len(targets)} training images are too few to hold some of them out")
    return torch.from_numpy(places)


def headline(scores: Tensor, targets: Tensor) -> float:
    """Give the one number by which classifiers are chosen: accuracy, or 11-point mAP.

    Args:
        scores: (N, K) logits.
        targets: (N,) int64, or (N, K) bool.
    """
    if targets.dim() == 2:
        return map11(scores, targets)
    return float((scores.argmax(1) == targets).double().mean())


def measure(scores: Tensor, targets: Tensor) -> dict[str, float]:
    """Give all metrics that make sense; arguments as of `headline`."""
    found = {}
    if targets.dim() == 1:
        K = scores.shape[1]
        found["accuracy"] = headline(scores, targets)
        found["mean_per_class"] = mean_per_class(scores.argmax(1), targets, K)
        scores, targets = scores.softmax(1), F.one_hot(targets, K).bool()
    found["map11"] = map11(scores, targets)
    if (targets.any(0) & ~targets.all(0)).any():  # else there is nothing to tell apart
        found["roc_auc"] = mean_roc_auc(scores, targets)
    return found


def _samples(task: Task, places: Tensor) -> Samples:
    """Take some training samples, in parts."""
    parts = [task.train.take(some) for some in torch.split(places, PART)]
    return Samples(parts, task.train_targets[places])


@torch.no_grad()
def _scores(probe: Probe, rows: Rows) -> Tensor:
    """Give a probe's (N, K) logits, on the CPU."""
    device = probe.layer.weight.device
    return torch.cat([probe.layer(part.to(device)).cpu() for part in rows.parts])

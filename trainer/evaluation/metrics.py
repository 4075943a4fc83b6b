"""How right scores are: mean per class, ROC-AUC, 11-point mAP.

Shapes: N samples, K classes.
"""

import torch
from torch import Tensor


def mean_per_class(predictions: Tensor, labels: Tensor, num_classes: int) -> float:
    """Average the classes' accuracies, each class counting alike (balanced accuracy).

    Args:
        predictions: (N,) int64.
        labels: (N,) int64; classes that none of them has do not count.
        num_classes: K.
    """
    right = torch.bincount(labels[predictions == labels], minlength=num_classes)
    total = torch.bincount(labels, minlength=num_classes)
    return float((right[total > 0] / total[total > 0]).mean())


def roc_auc(scores: Tensor, is_positive: Tensor) -> float:
    """Give the probability that a positive scores higher than a negative, ties counting half.

    Args:
        scores: (N,).
        is_positive: (N,) bool, of both kinds.

    Raises:
        ValueError: if all are of one kind.
    """
    num_positive = int(is_positive.sum())
    num_negative = len(is_positive) - num_positive
    if not num_positive or not num_negative:
        raise ValueError("ROC-AUC needs positives and negatives")
    _, inverse, counts = torch.unique(scores, return_inverse=True, return_counts=True)
    last = counts.cumsum(0).double()
    ranks = (last - (counts - 1) / 2)[inverse]  # (N,) from 1, the middle one for ties
    above = ranks[is_positive].sum() - num_positive * (num_positive + 1) / 2
    return float(above / (num_positive * num_negative))


def mean_roc_auc(scores: Tensor, targets: Tensor) -> float:
    """Average the classes' ROC-AUCs, each class against the rest.

    Args:
        scores: (N, K).
        targets: (N, K) bool; classes that all or none have do not count.

    Raises:
        ValueError: if no class counts.
    """
    telling = targets.any(0) & ~targets.all(0)
    if not telling.any():
        raise ValueError("ROC-AUC needs positives and negatives of a class")
    columns = telling.nonzero().flatten().tolist()
    return sum(roc_auc(scores[:, k], targets[:, k]) for k in columns) / len(columns)


def map11(scores: Tensor, targets: Tensor) -> float:
    """Give the mean over classes of the 11-point average precision of PASCAL VOC 2007.

    Precision at a recall is the best at that or any higher recall; it is averaged over recalls
    of 0, 0.1, ..., 1 (Everingham et al. 2010, section 4.2).

    Args:
        scores: (N, K).
        targets: (N, K) bool; classes that none have do not count.

    Raises:
        ValueError: if no class counts.
    """
    columns = targets.any(0).nonzero().flatten().tolist()
    if not columns:
        raise ValueError(f"mAP needs positives of a class; {len(targets)} images have none")
    return sum(_average_precision11(scores[:, k], targets[:, k]) for k in columns) / len(columns)


def _average_precision11(scores: Tensor, is_positive: Tensor) -> float:
    """Average interpolated precision over 11 recalls."""
    hits = is_positive[scores.argsort(descending=True, stable=True)].double()
    found = hits.cumsum(0)
    precision = found / torch.arange(1, len(hits) + 1)
    best_from_here = precision.flip(0).cummax(0).values.flip(0)
    # Recall j/10 is reached with the image that makes found >= j/10 of all; whole numbers are
    # compared, because 0.1 * 3 is not 0.3.
    total = int(found[-1])
    reached = [int((10 * found >= j * total).nonzero()[0]) for j in range(11)]
    return float(best_from_here[reached].mean())

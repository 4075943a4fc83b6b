import pytest
import torch

from trainer.evaluation.metrics import map11, mean_per_class, mean_roc_auc, roc_auc


def test_mean_per_class_counts_classes_alike():
    labels = torch.tensor([0, 0, 0, 0, 2])
    predictions = torch.tensor([0, 0, 0, 1, 1])
    assert mean_per_class(predictions, labels, 3) == pytest.approx((3 / 4 + 0) / 2)


def test_roc_auc_is_the_share_of_pairs_in_order():
    generator = torch.Generator().manual_seed(0)
    scores = torch.randint(0, 6, (40,), generator=generator).float()  # many ties
    positive = torch.rand(40, generator=generator) < 0.4
    pairs = [
        1.0 if p > n else 0.5 if p == n else 0.0
        for p in scores[positive].tolist()
        for n in scores[~positive].tolist()
    ]
    assert roc_auc(scores, positive) == pytest.approx(sum(pairs) / len(pairs))


def test_roc_auc_of_one_kind_is_refused():
    with pytest.raises(ValueError, match="positives and negatives"):
        roc_auc(torch.rand(3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ValueError, match="of a class"):
        mean_roc_auc(torch.rand(3, 2), torch.tensor([[True, False]] * 3))


def test_mean_roc_auc_leaves_out_classes_that_tell_nothing():
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.2, 0.8, 0.5], [0.6, 0.4, 0.5]])
    targets = torch.tensor([[1, 0, 0], [0, 1, 0], [0, 1, 0]]).bool()
    assert mean_roc_auc(scores, targets) == pytest.approx((1.0 + 1.0) / 2)


def test_map11_equals_the_written_out():
    generator = torch.Generator().manual_seed(1)
    scores = torch.rand(30, 4, generator=generator)
    targets = torch.rand(30, 4, generator=generator) < 0.3
    expected = []
    for k in range(4):
        order = sorted(range(30), key=lambda i: -float(scores[i, k]))
        hits = [bool(targets[i, k]) for i in order]
        points = [(sum(hits[: n + 1]), sum(hits[: n + 1]) / (n + 1)) for n in range(30)]
        total = sum(hits)
        best = [max(p for f, p in points if 10 * f >= j * total) for j in range(11)]
        expected.append(sum(best) / 11)
    assert map11(scores, targets) == pytest.approx(sum(expected) / 4)


def test_map11_of_perfect_scores_is_one():
    targets = torch.eye(5).bool()
    assert map11(torch.eye(5), targets) == 1


def test_map11_of_no_positive_is_refused():
    with pytest.raises(ValueError, match="mAP needs positives"):
        map11(torch.rand(3, 2), torch.zeros(3, 2, dtype=torch.bool))

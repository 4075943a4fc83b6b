import json

import numpy as np
import pytest
import torch

from trainer.evaluation.classify import check, collect_votes, score
from trainer.evaluation.config import KnnConfig
from trainer.evaluation.features import Rows


@pytest.fixture(scope="module")
def recorded():
    from tests.trainer.evaluation.test_knn import REFERENCE

    with np.load(REFERENCE, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def rows(features, part):
    features = torch.as_tensor(features)
    return Rows(features.split(part), torch.arange(len(features)), len(features))


def test_recorded_accuracies_are_found_whatever_the_parts(recorded):
    classes = json.loads(bytes(recorded["config_json"]).decode())["classes"]
    labels = torch.from_numpy(recorded["test_labels"])
    votes = collect_votes(
        rows(recorded["train_features"], 70),
        torch.from_numpy(recorded["train_labels"]),
        rows(recorded["test_features"], 33),
        classes,
        KnnConfig(data=""),
    )
    for k in (10, 20, 100, 200):
        found = score(votes[k], labels, classes)
        assert 100 * found["top1"] == pytest.approx(float(recorded[f"k{k}/top1"]), abs=1e-3)
        assert 100 * found["top5"] == pytest.approx(float(recorded[f"k{k}/top5"]), abs=1e-3)
        right = recorded[f"k{k}/pred_top1"] == recorded["test_labels"]
        per_class = [right[recorded["test_labels"] == c].mean() for c in range(classes)]
        assert found["balanced"] == pytest.approx(np.mean(per_class), abs=1e-6)
        assert "roc_auc" not in found


def test_few_images_of_two_classes_are_classified():
    bank, labels = torch.eye(3), torch.tensor([0, 0, 1])
    queries = torch.tensor([[1.0, 0, 0.1], [0.1, 0, 1.0], [0.6, 0.1, 0.5]])
    votes = collect_votes(rows(bank, 2), labels, rows(queries, 2), 2, KnnConfig(data="", k=(1, 20)))
    found = score(votes[1], torch.tensor([0, 1, 1]), 2)
    assert found["top1"] == pytest.approx(2 / 3)
    assert found["top5"] == 1
    assert found["balanced"] == pytest.approx((1 + 1 / 2) / 2)
    assert found["roc_auc"] == pytest.approx(0.75)  # one vote of one: two queries tie
    assert score(votes[20], torch.tensor([0, 1, 1]), 2)["roc_auc"] == 1
    assert "roc_auc" not in score(votes[1], torch.tensor([1, 1, 1]), 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": ()}, r"k is \(\), expected 1 or more"),
        ({"k": (0,)}, r"k is \(0,\), expected 1 or more"),
        ({"temperature": 0.001}, "temperature is 0.001, expected 0.02 or more"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check(KnnConfig(data="", **options))

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from trainer.evaluation import knn
from trainer.evaluation.knn import neighbours, top1, votes

REFERENCE = Path(__file__).parents[2] / "reference" / "knn.npz"


@pytest.fixture(scope="module")
def reference():
    with np.load(REFERENCE, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


@pytest.mark.parametrize("k", [10, 20, 100, 200])
def test_votes_equal_the_recorded(k, reference):
    settings = json.loads(bytes(reference["config_json"]).decode())
    found = votes(
        torch.from_numpy(reference["test_features"]),
        torch.from_numpy(reference["train_features"]),
        torch.from_numpy(reference["train_labels"]),
        k=k,
        num_classes=settings["classes"],
    )
    np.testing.assert_allclose(found, reference[f"k{k}/probs"], rtol=1e-4)
    assert np.array_equal(found.argmax(1), reference[f"k{k}/pred_top1"])
    accuracy = top1(found, torch.from_numpy(reference["test_labels"]))
    assert 100 * accuracy == pytest.approx(float(reference[f"k{k}/top1"]), abs=1e-3)


def test_more_neighbours_than_images_are_all_images():
    bank, labels = torch.eye(3), torch.tensor([0, 1, 1])
    found = votes(torch.tensor([[1.0, 0, 0]]), bank, labels, k=20, num_classes=2)
    expected = torch.tensor([[np.exp(1 / 0.07), 2.0]], dtype=torch.float32)
    torch.testing.assert_close(found, expected)


def test_a_bank_in_parts_is_as_good_as_whole(monkeypatch):
    torch.manual_seed(0)
    queries, bank = torch.randn(7, 5), torch.randn(40, 5)
    whole = neighbours(queries, [bank], 6)
    monkeypatch.setattr(knn, "_IMAGES", 9)
    monkeypatch.setattr(knn, "_QUERIES", 2)
    for sizes in ([40], [3] * 13 + [1], [20, 1, 19]):
        found = neighbours(queries, torch.split(bank, sizes), 6)
        assert torch.equal(found.indices, whole.indices)
        torch.testing.assert_close(found.cosines, whole.cosines)

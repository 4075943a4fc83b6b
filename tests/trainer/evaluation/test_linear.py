import pytest
import torch
from rich.console import Console

from trainer.evaluation.config import LinearConfig
from trainer.evaluation.features import Rows
from trainer.evaluation.linear import Task, check, hold_out, measure, run_lbfgs, run_sgd

CONSOLE = Console(stderr=True)
CONFIG = LinearConfig(data="", base_lr=(0.1, 1.0), epochs=10, sgd_batch=32)


def task(*, are_many=False, noise=0.5):
    """Three classes in three of ten directions."""
    generator = torch.Generator().manual_seed(0)
    sets = []
    for count in (150, 60):
        classes = torch.arange(count) % 3
        features = noise * torch.randn(count, 10, generator=generator)
        features[torch.arange(count), classes] += 2
        targets = torch.eye(3)[classes].bool() if are_many else classes
        sets += [Rows(features.split(64), torch.arange(count), count), targets]
    return Task(*sets, num_classes=3, device=torch.device("cpu"))


def test_both_ways_learn_what_can_be_told_apart():
    found = run_lbfgs(task(), CONFIG, CONSOLE)
    assert found["accuracy"] > 0.9
    assert found["mean_per_class"] == pytest.approx(found["accuracy"])
    assert found["roc_auc"] > 0.95
    assert found["map11"] > 0.9
    assert found["validation_images"] == 30
    assert found["l2"] in dict(found["searched"])
    assert found["validation"] == max(score for _, score in found["searched"])
    sgd = run_sgd(task(), CONFIG, CONSOLE)
    assert [run["base_lr"] for run in sgd["runs"]] == [0.1, 1.0]
    for run in sgd["runs"]:
        assert run["best"]["accuracy"] >= run["last"]["accuracy"] > 0.9
        assert 1 <= run["best"]["epoch"] <= 10


def test_any_number_of_classes_is_measured_by_map_and_auc():
    found = run_lbfgs(task(are_many=True), CONFIG, CONSOLE)
    assert found["map11"] > 0.9
    assert found["roc_auc"] > 0.95
    assert "accuracy" not in found
    sgd = run_sgd(task(are_many=True), CONFIG, CONSOLE)
    assert all(run["best"]["map11"] >= run["last"]["map11"] > 0.9 for run in sgd["runs"])


def test_features_that_say_nothing_give_chance():
    found = run_lbfgs(task(noise=1e6), CONFIG, CONSOLE)
    assert found["accuracy"] < 0.6
    assert 0.3 < found["roc_auc"] < 0.7


def test_same_seed_gives_the_same():
    assert run_sgd(task(), CONFIG, CONSOLE) == run_sgd(task(), CONFIG, CONSOLE)
    assert run_lbfgs(task(), CONFIG, CONSOLE) == run_lbfgs(task(), CONFIG, CONSOLE)


def test_held_out_are_of_each_class_alike_but_none_wholly():
    targets = torch.tensor([0] * 10 + [1] * 20 + [2])
    places = hold_out(targets, 0.2, seed=0)
    assert torch.bincount(targets[places], minlength=3).tolist() == [2, 4, 0]
    assert torch.equal(places, hold_out(targets, 0.2, seed=0))
    assert not torch.equal(places, hold_out(targets, 0.2, seed=1))
    assert len(hold_out(torch.ones(10, 3).bool(), 0.2, seed=0)) == 2
    with pytest.raises(ValueError, match="too few to hold some"):
        hold_out(torch.tensor([0, 1]), 0.2, seed=0)


def test_test_images_of_one_class_have_no_auc():
    assert "roc_auc" not in measure(torch.rand(4, 1), torch.zeros(4, dtype=torch.int64))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_lr": ()}, r"base_lr is \(\)"),
        ({"base_lr": (0.1, -1.0)}, "base_lr is -1.0, expected over 0"),
        ({"base_lr": (float("nan"),)}, "base_lr is nan"),
        ({"base_lr": (float("inf"),)}, "base_lr is inf"),
        ({"epochs": 0}, "epochs is 0"),
        ({"sgd_batch": 0}, "sgd_batch is 0"),
        ({"validation": 1.0}, "between 0 and 1"),
        ({"multi_label": True}, "needs --labels"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        check(LinearConfig(data="", **options))
